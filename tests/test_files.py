"""JSON lines and replaced text."""

import pytest

from kd_local.files import read_json_lines, replace_text


def test_lines_without_a_json_object_are_skipped(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "lo\n3\n\n{"step": 4}\n{"st')
    assert read_json_lines(path) == [{"step": 1}, {"step": 4}]


def test_text_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert path.read_text() == "old"
    replace_text(path, "new")
    assert path.read_text() == "new"
