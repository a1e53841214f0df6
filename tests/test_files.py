"""Files that are there as a whole or not at all, and lines of JSON that outlive a crash."""

import json
import os
import stat

import pytest

from rclip_metric.errors import StorageError
from rclip_metric.files import remove_unfinished, written_whole
from rclip_metric.train.runs.files import append_line, whole_lines, write_json, write_text


def test_a_file_appears_when_it_is_complete_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "a.json"
    for text in ("one", "two"):
        with written_whole(path, flush=True) as partial:
            partial.write_text(text)
            partial.chmod(0o600)  # as safetensors leaves its files
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert [found.name for found in path.parent.iterdir()] == ["a.json"]


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("ne")
        (partial.parent / "further").write_text("")  # a name of the writer's own
        raise KeyboardInterrupt
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder cannot be written to .*: Is a directory: make it writable"):
        write_json(tmp_path / "folder", {})


def test_two_that_write_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a[1].json"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    (tmp_path / ".a[1].json.1234.partial").mkdir()  # of a process that was killed
    (tmp_path / ".a[1].jsonl.1234.partial").mkdir()
    remove_unfinished(path)
    assert {found.name for found in tmp_path.iterdir()} == {"a[1].json", ".a[1].jsonl.1234.partial"}


def test_lines_that_were_cut_short_are_left_out(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2, "text": "\u00fc\n"})
    with path.open("a") as handle:
        handle.write('{"step": 3, "lo')
    append_line(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")] == [1, 2, 3]
    assert list(whole_lines(path)) == [{"step": 1}, {"step": 2, "text": "\u00fc\n"}, {"step": 3}]
