"""Messages of Protocol Buffers, read field by field: what ONNX files and the indexes of TensorFlow are made of.

There is no code generated from a schema and no package for it: a reader asks for the few fields that it needs, by their
numbers.
"""

from collections import defaultdict
from collections.abc import Mapping

from rclip_metric.errors import CheckpointError

Value = int | memoryview
Fields = Mapping[int, list[Value]]
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_MOST = 1_000_000  # values of one message, each of which takes far more memory than its two bytes


def read_varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    """Read a number of seven bits a byte, at most 64 bits; return it and the place behind it.

    Raises:
        CheckpointError: The data end within it, or it does not end.

    Example:
        >>> read_varint(memoryview(bytes([0xAC, 0x02])), 0, "a file")
        (300, 2)
    """
    value = 0
    for number, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            return value & (1 << 64) - 1, at + number + 1
    raise CheckpointError(f"{where} is damaged: a number in it does not end.")


def read_fields(data: memoryview, where: str) -> Fields:
    """Take a message apart.

    Args:
        data: Its bytes.
        where: What it is part of, for the error.

    Returns:
        All values of each field by the field's number, in their order: integers as they are stored, without a sign;
        everything else as bytes, which are not copied.

    Raises:
        CheckpointError: These bytes are no message.

    Example:
        >>> {number: values[0] for number, values in read_fields(memoryview(bytes([8, 1, 18, 0])), "a file").items()}
        {1: 1, 2: <memory at 0x...>}
    """
    fields: defaultdict[int, list[Value]] = defaultdict(list)
    at = count = 0
    while at < len(data):
        count += 1
        if count > _MOST:
            raise CheckpointError(f"{where} has a message of more than {_MOST} values, which is not read here.")
        key, at = read_varint(data, at, where)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == _VARINT:
            value, at = read_varint(data, at, where)
        else:
            if kind == _BYTES:
                length, at = read_varint(data, at, where)
            elif kind in _FIXED:
                length = _FIXED[kind]
            else:
                raise CheckpointError(f"{where} is damaged: it has a field of the unknown kind {kind}.")
            if length > len(data) - at:
                raise CheckpointError(f"{where} is damaged or cut off: {len(data) - at} of {length} bytes are left.")
            value = data[at : at + length]
            at += length
        fields[number].append(value)
    return fields


def integers(fields: Fields, number: int, where: str) -> list[int]:
    """Return the values of a repeated integer, whether they are packed into one run of bytes or not."""
    found = []
    for value in fields.get(number, []):
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value) and len(found) < _MOST:
            one, at = read_varint(value, at, where)
            found.append(one)
    return found


def integer(fields: Fields, number: int, where: str) -> int:
    """Return the value of an integer, the last if there are several; 0, its default, where it is left out."""
    return integers(fields, number, where)[-1] if number in fields else 0


def messages(fields: Fields, number: int, where: str) -> list[memoryview]:
    """Return the values of a field of bytes, texts or messages.

    Raises:
        CheckpointError: The field holds something else.
    """
    found = []
    for value in fields.get(number, []):
        if isinstance(value, int):
            raise CheckpointError(f"{where} is damaged: its field {number} is a number, and expected are bytes.")
        found.append(value)
    return found


def message(fields: Fields, number: int, where: str) -> memoryview:
    """Return the value of a field of bytes or a message, the last if there are several; empty where it is left out."""
    return messages(fields, number, where)[-1] if number in fields else memoryview(b"")


def texts(fields: Fields, number: int, where: str) -> list[str]:
    """Return the values of a field of texts; CheckpointError where they are none."""
    try:
        return [bytes(value).decode() for value in messages(fields, number, where)]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is damaged: its field {number} is no text.") from error


def text(fields: Fields, number: int, where: str) -> str:
    """Return the value of a field of text, the last if there are several; empty where it is left out."""
    return texts(fields, number, where)[-1] if number in fields else ""
