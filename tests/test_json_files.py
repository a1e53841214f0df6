"""The one reader of JSON: what is refused, in one sentence that names file and field, and at no cost."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rclip_metric import json_files
from rclip_metric.errors import ManifestError
from rclip_metric.json_files import COUNT, NUMBER, TEXT, Checker, OrNull, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ('{"a": 1} {}', "Extra data"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ("[NaN]", "'NaN' is not a finite number"),
        ("[-Infinity]", "'-Infinity' is not a finite number"),
        ("[1e400]", "'1e400' is not a finite number"),
        (f"[{'9' * 5000}]", "the integer 9+... has 5000 digits"),
        ("[" * 65 + "]" * 65, "it nests more than 64 levels deep"),
        ("[" * 100_000 + "]" * 100_000, "it nests more than 64 levels deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "it nests more than 64 levels deep"),
        ('["\\ud800"]', "surrogates not allowed"),
        (b'["\xff"]', "can't decode byte"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('["\x01"]', "Invalid control character"),
    ],
)
def test_what_is_no_strict_json_is_refused_in_one_sentence(text: str | bytes, complaint: str) -> None:
    with pytest.raises(ManifestError, match=rf"^run.json is not JSON that can be read: .*{complaint}.*\.$"):
        parse_json(text, "run.json")


def test_the_deepest_and_every_plain_value_is_read_as_json_reads_it() -> None:
    text = '{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00", {}], "b": 18446744073709551615}'
    assert parse_json(text, "it") == json.loads(text)
    deepest = "[" * 64 + "]" * 64
    assert parse_json(deepest, "it") == json.loads(deepest)


def test_size_and_number_of_values_have_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(json_files.MOST_BYTES + 10)
    with pytest.raises(ManifestError, match=r"large.json is not JSON that can be read: it has \d+ bytes, and \d+ are"):
        read_json(path)
    monkeypatch.setattr(json_files, "MOST_VALUES", 100)
    with pytest.raises(ManifestError, match="more than 100 values"):
        parse_json(json.dumps([0] * 101), "it")


def test_many_equal_keys_take_no_longer_than_others() -> None:
    text = "{" + ",".join(f'"{number}": 0' for number in range(100_000)) + ', "99999": 1}'
    start = time.process_time()
    with pytest.raises(ManifestError, match="'99999' is there twice"):
        parse_json(text, "it")
    assert time.process_time() - start < 5  # comparing each with each takes minutes


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ManifestError, match=rf"^{path} is no file with JSON in it\.$"):
            read_json(path)
    with pytest.raises(ManifestError, match=r"none.json cannot be read: No such file or directory\.$"):
        read_json(tmp_path / "none.json")


SCHEMA = {"runs": [{"steps": COUNT, "seed?": NUMBER}], "note": OrNull({"by": TEXT}), "numbers?": {"*": NUMBER}}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([], ": expected an object, got []"),
        ({"runs": []}, ", field 'note': is missing"),
        ({"runs": {}, "note": None}, ", field 'runs': expected a list, got {}"),
        ({"runs": [{}], "note": None}, ", field 'runs[0].steps': is missing"),
        ({"runs": [{"steps": True}], "note": None}, ", field 'runs[0].steps': expected a positive integer, got True"),
        ({"runs": [{"steps": 1, "x": 1}], "note": None}, ", field 'runs[0].x': is not known"),
        ({"runs": [], "note": {"by": ""}}, ", field 'note.by': expected a text, got ''"),
        ({"runs": [], "note": None, "numbers": {"a": "1"}}, ", field 'numbers.a': expected a number, got '1'"),
        ({"runs": 10 * ["long"], "note": "x"}, ", field 'runs[0]': expected an object, got 'long'"),
        ({"runs": [], "note": "x" * 1000}, ", field 'note': expected an object, got '" + 76 * "x" + "..."),
    ],
)
def test_a_schema_names_the_field(value: Any, complaint: str) -> None:
    with pytest.raises(ManifestError) as error:
        Checker("run.json").matches("", value, SCHEMA)
    assert str(error.value) == f"run.json{complaint}."


def test_what_a_schema_allows_is_returned_as_it_is() -> None:
    value = {"runs": [{"steps": 1}, {"steps": 2, "seed": 0.5}], "note": {"by": "me"}, "numbers": {"a": 1, "b": 2.5}}
    assert Checker("run.json").matches("", value, SCHEMA) is value
