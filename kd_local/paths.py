"""Paths as users write them: `~` and environment variables are expanded."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path


def read_path(text: str | Path, name: str) -> Path:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` expanded.

    Args:
        text: the path as it was written.
        name: the option that gives it, for the error.

    Raises:
        ValueError: it is empty, or holds an environment variable that is not set or a user that does not exist.
    """
    written = str(text)
    if not written.strip() or "\0" in written:
        raise ValueError(f"{name} is {written!r}: give the path of a file or folder, such as runs/first")
    expanded = os.path.expanduser(os.path.expandvars(written.strip()))
    if match := re.search(r"\$\{?(\w+)\}?", expanded):
        raise ValueError(f"{name} is {written!r}: the environment variable {match[1]} is not set")
    if expanded.startswith("~") and not Path(expanded).exists():
        raise ValueError(f"{name} is {written!r}: there is no home folder {expanded.split('/')[0]}")
    return Path(expanded)


def read_folder(text: str | Path, name: str) -> Path:
    """The path of a folder for results, see `read_path`.

    Raises:
        ValueError: see `read_path`; or it is the root of the file system, or something else than a folder; or it is
            missing and cannot be made.
    """
    path = read_path(text, name)
    if path.resolve() == Path(path.resolve().anchor):
        raise ValueError(f"{name} is {str(text)!r}, the root of the file system: give a folder, such as runs/first")
    last = next(part for part in (path, *path.absolute().parents) if part.exists() or part.is_symlink())
    if not last.is_dir():
        what = "a file" if last.is_file() else "no folder"
        if last == path:
            raise ValueError(f"{name} {str(path)!r} is {what}: give a folder")
        shown = last if path.is_absolute() else os.path.relpath(last)
        raise ValueError(f"{name} {str(path)!r} cannot be made, because {str(shown)!r} is {what}: use another folder")
    if last != path and not os.access(last, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name} {str(path)!r} cannot be made: this user cannot write to {str(last)!r}; use another folder"
        )
    return path


def make_folder(path: Path, name: str) -> None:
    """Makes a folder for results, if it is missing.

    Raises:
        ValueError: the system refuses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name} {str(path)!r} cannot be used: {error.strerror}; use another folder") from None


def read_existing(text: str | Path, name: str) -> Path:
    """As `read_path`, for a file or a folder that exists.

    Raises:
        ValueError: see `read_path`, or nothing is there; the error lists near names of the same folder.
    """
    path = read_path(text, name)
    if not path.exists():
        raise _missing(path, name)
    return path


def _missing(path: Path, name: str) -> ValueError:
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        wanted, folder = folder.name, folder.parent
    try:
        names = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
    except OSError:
        names = []
    near = [str(folder / each) for each in near_names(wanted, names, most=5)]
    there = f"; there are {', '.join(near)}" if near else f"; {folder} is empty" if folder == path.parent else ""
    return ValueError(f"{name} {str(path)!r}: there is no such file or folder{there}")


def near_names(name: str, names: Iterable[str], *, most: int) -> list[str]:
    """At most `most` of the names, the nearest in spelling first."""

    def likeness(other: str) -> float:
        return max(difflib.SequenceMatcher(None, name.lower(), each).ratio() for each in (other, Path(other).name))

    return sorted(names, key=lambda other: (-likeness(other.lower()), other))[:most]
