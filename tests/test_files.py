"""JSON files that are checked as they are read, and files that are replaced whole."""

import errno
import os
from dataclasses import dataclass
from functools import partial

import pytest

from kd_local.files import (
    DamagedFileError,
    append_json,
    from_fields,
    read_json,
    read_json_lines,
    replace_text,
    replacing,
)


def test_lines_without_a_json_object_are_named_and_skipped(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_json_lines(path, dict) == []
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\n3\n\n\xff\n{"step": 4}\n{"st')
    reports = []
    assert read_json_lines(path, dict, reports.append) == [{"step": 1}, {"step": 4}]
    assert reports == [
        f"line {number} of {path} is damaged ({problem}) and is skipped"
        for number, problem in [
            (2, "no JSON"),
            (3, "a JSON number in place of an object"),
            (5, "no JSON"),
            (7, "no JSON"),
        ]
    ]


@dataclass(frozen=True)
class Row:
    name: str
    size: int
    share: float | None
    blocks: tuple[str, ...]


def test_lines_that_are_no_record_are_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"name": "a", "size": 1, "share": None, "blocks": ["b"]}
    append_json(path, good)
    for change in ({"size": "1"}, {"size": True}, {"size": 1.5}, {"share": "x"}, {"blocks": [1]}, {"more": 1}):
        append_json(path, good | change)
    append_json(path, {"name": "a"})
    append_json(path, good | {"share": 1, "blocks": []})
    reports = []
    rows = read_json_lines(path, partial(from_fields, Row), reports.append)
    assert rows == [Row("a", 1, None, ("b",)), Row("a", 1, 1, ())]
    assert [report.split("damaged ")[1] for report in reports] == [
        "('size' is a JSON string, expected int) and is skipped",
        "('size' is a JSON truth value, expected int) and is skipped",
        "('size' is a JSON number, expected int) and is skipped",
        "('share' is a JSON string, expected float | None) and is skipped",
        "('blocks' is a JSON list, expected tuple[str, ...]) and is skipped",
        "(unknown key 'more') and is skipped",
        "(no 'size') and is skipped",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JSON"),
        (b'{"a": 1', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "a JSON list in place of an object"),
        (b"null", "a JSON null in place of an object"),
        (b"5", "a JSON number in place of an object"),
        (b'"a"', "a JSON string in place of an object"),
        (b"{}", "no 'a'"),
        (b'{"a": null}', "'a' is a JSON null, expected int"),
        (b'{"a": 1, "b": ["c", 1]}', "'b' is a JSON list, expected list[str]"),
    ],
)
def test_a_file_that_is_something_else_is_named_with_a_way_out(tmp_path, content, problem):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as raised:
        read_json(path, {"a": int, "b": list[str]}, way_out="remove it")
    assert str(raised.value) == f"{str(path)!r} is damaged ({problem}): remove it"


def test_a_json_object_with_the_right_types_is_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"a": 1, "b": ["c"], "more": {}}')
    assert read_json(path, {"a": int, "b": list[str]}, way_out="") == {"a": 1, "b": ["c"], "more": {}}


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path):
    (tmp_path / "folder").mkdir()
    for read in (partial(read_json, hints={}, way_out=""), partial(read_json_lines, parse=dict)):
        with pytest.raises(IsADirectoryError, match="folder"):
            read(tmp_path / "folder")


def test_text_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as raised:
        patch.setattr(os, "fsync", fail)
        replace_text(path, "new")
    assert raised.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_text(path, "new")
    assert path.read_text() == "new"


def test_an_error_of_the_writer_is_raised_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    assert not list(tmp_path.iterdir())


def test_links_that_somebody_else_made_are_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("a.json", "a.json.tmp"):
        (tmp_path / name).symlink_to(other)
    replace_text(tmp_path / "a.json", "new")
    assert other.read_text() == "mine" and not (tmp_path / "a.json").is_symlink()
    (tmp_path / "a.jsonl").symlink_to(other)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        append_json(tmp_path / "a.jsonl", {})
    assert other.read_text() == "mine"


def test_a_replaced_file_has_the_permissions_of_the_mask(tmp_path):
    mask = os.umask(0o027)
    try:
        replace_text(tmp_path / "a", "")
        append_json(tmp_path / "b", {})
    finally:
        os.umask(mask)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


def test_a_line_begins_after_one_that_was_cut_short(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    append_json(path, {"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a"\n{"a": 2}\n'
