"""Reads a config file: runs it, and names the line of a mistake in it."""

import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from experiments.configs.checks import check_values, unknown_key
from kd_local.paths import near_names, read_path

_FOLDER = Path(__file__).parent


def read_module(path: Path) -> ModuleType:
    """A config file as a module that has run, with a function `get_config`.

    Raises:
        ValueError: there is no such file, it is not Python, it raises an error, or it has no `get_config`.
    """
    if path.is_dir():
        raise ValueError(f"config file {str(path)!r} is a folder: use {_known(path)}")
    if not path.is_file():
        raise ValueError(f"no config file {str(path)!r}: use {_known(path)}")
    if path.suffix != ".py":
        raise ValueError(f"config file {str(path)!r} is no Python file (.py): use {_known(path)}")
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno or 1}: {error.msg} (a syntax error in the config file)") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"config file {str(path)!r} cannot be read: {error}") from None
    _run(path, lambda: exec(code, module.__dict__))
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(
            f"config file {str(path)!r} has no function get_config(options=''), which returns the config: use "
            f"{_known(path)}"
        )
    return module


def read_config(text: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:OPTIONS`, locked, with every key checked.

    Raises:
        ValueError: see `read_module`; `get_config` fails or returns something else; or a key is unknown, missing, or
            outside of its range.
    """
    file, colon, options = text.partition(":")
    path = read_path(file, "config")
    return config_of(read_module(path), path, options if colon else None)


def config_of(module: ModuleType, path: Path, options: str | None) -> ConfigDict:
    """The config that a module's `get_config` returns for these options; see `read_config`."""
    config = _run(path, module.get_config if options is None else lambda: module.get_config(options))
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config returned {type(config).__name__}: return a ConfigDict")
    try:
        check_values(config)
    except ValueError as error:
        raise ValueError(f"{_place_of(path, str(error))}: {error}") from None
    config.lock()
    return config


def _run(path: Path, call: Callable[[], object]) -> object:
    """The result of code of the file; what it raises becomes one line with the file and the line number."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ] or [1]
        raise ValueError(f"{path}:{lines[-1]}: {_described(error, path, lines[-1])}") from None


def _described(error: BaseException, path: Path, line: int | None) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (AttributeError, KeyError)) and (found := re.search(r'Key "(\w+)" does not exist', text)):
        written = re.search(rf"((?:\w+\.)*){found[1]}\b", linecache.getline(str(path), line or 1).strip())
        groups = written[1].split(".")[1:] if written else []
        return str(unknown_key(".".join([*filter(None, groups), found[1]])))
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _place_of(path: Path, message: str) -> str:
    """The file, with the line that assigns the key that the message starts with, if there is such a line."""
    found = re.search(r"[a-z_]\w*(?:\.\w+)+|'\w+'|^\w+", message)
    word = found[0].strip("'").rpartition(".")[2] if found else ""
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if word and re.search(rf"\b{word}\b\s*[=:,\]\"']", line):
            return f"{path}:{number}"
    return str(path)


def _known(path: Path) -> str:
    """The config files that are near: with a similar name, else of the same folder, else of this package."""
    package = [file for file in sorted(_FOLDER.glob("*/*.py")) if _is_config(file)]
    here = [file for file in sorted(path.parent.glob("*.py")) if _is_config(file)] if path.parent.is_dir() else []
    files = here if len(here) > 1 else package
    root = Path.cwd()
    names = [str(file.relative_to(root) if file.is_relative_to(root) else file) for file in files]
    return ", ".join(near_names(path.name, names, most=5))


def _is_config(path: Path) -> bool:
    return "def get_config(" in path.read_text(errors="replace")
