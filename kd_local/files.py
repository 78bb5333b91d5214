"""Writes files so that a killed process leaves no part of one, and checks the contents of JSON files."""

import errno
import json
import os
import secrets
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


class DamagedFileError(ValueError):
    """The contents of a file are not as expected. The message names the file and a way out."""


def read_bytes(path: Path) -> bytes:
    """The contents of a file.

    Raises:
        OSError: the file cannot be read; `filename` is set.
    """
    try:
        with path.open("rb") as file:
            return file.read()
    except OSError as error:
        raise with_name(error, path) from error


def with_name(error: OSError, path: Path) -> OSError:
    """The error with the file's name, which errors of reading and writing lack."""
    return OSError(error.errno, error.strerror, str(path))


def read_json(path: Path, hints: Mapping[str, Any], *, way_out: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: path of the file.
        hints: the keys that the object must have, with the types of their values as in annotations.
        way_out: the way out for the error's message.

    Raises:
        DamagedFileError: the file is not such an object.
        OSError: the file cannot be read.
    """
    try:
        values = _object(read_bytes(path))
        check_values(values, hints)
    except ValueError as error:
        raise DamagedFileError(f"{str(path)!r} is damaged ({error}): {way_out}") from None
    return values


def read_json_lines(
    path: Path, parse: Callable[[dict[str, Any]], T], report: Callable[[str], None] = lambda text: None
) -> list[T]:
    """The results of `parse` for the JSON objects in a file with one object per line; empty if there is no file.

    A line is skipped if it is not a JSON object, or if `parse` raises KeyError, TypeError or ValueError. A process that
    is killed while it appends leaves an incomplete line.

    Args:
        path: path of the file.
        parse: turns a JSON object into a result.
        report: called with a sentence about each line that is skipped.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse(_object(line)))
        except (KeyError, TypeError, ValueError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            report(f"line {number} of {path} is damaged ({problem}) and is skipped")
    return found


def from_fields(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from a JSON object with exactly its fields.

    Raises:
        ValueError: a field is missing or unknown, or its value has another type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    check_values(values, {name: hints[name] for name in names})
    extra = sorted(values.keys() - set(names))
    if extra:
        raise ValueError(f"unknown key {extra[0]!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def replace_text(path: Path, text: str) -> None:
    """Writes a text file atomically: readers see the old text or the new one, never a part."""
    content = text.encode()
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A context manager with a new file, which replaces `path` at the end, once it is on the disk.

    After an error nothing is replaced. The file's temporary name is new, so that no link of another user is followed. A
    link at `path` is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # With the same permissions as a file from `open`.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise with_name(error, path) from error
        raise


def append_json(path: Path, values: Mapping[str, Any]) -> None:
    """Appends a line with a JSON object. If the last line is incomplete, a new line is begun.

    Raises:
        OSError: the file cannot be written, or `path` is a link.
    """
    line = json.dumps(values).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            view = memoryview(b"\n" + line if cut_short else line)
            while view:
                view = view[file.write(view) :]
    except OSError as error:
        raise with_name(error, path) from error


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk.

    Raises:
        OSError: the file or folder does not exist, or cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot flush a folder
            raise with_name(error, path) from error
    finally:
        os.close(descriptor)


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: the text is not a JSON object.
    """
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {_name(value)} in place of an object")
    return value


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Checks that a JSON object has keys with values of some types.

    Raises:
        ValueError: a key is missing, or its value has another type.
    """
    for key, hint in hints.items():
        if key not in values:
            raise ValueError(f"no {key!r}")
        if not _fits(values[key], hint):
            name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
            raise ValueError(f"{key!r} is a JSON {_name(values[key])}, expected {name}")


def _fits(value: Any, hint: Any) -> bool:
    """True if a JSON value has an annotated type: a scalar's, `list[...]`, `tuple[..., ...]`, `dict` or a union.

    The values of a dictionary may have any type.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        hint = (int, float)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint or type(None))


def _name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")
