"""Parses the flags of the programs. An error is one line with the value, what was expected and a way out."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from experiments.configs import default
from kd_local.errors import unknown

USAGE_STATUS = 2
CONFIG_HELP = "Config file; its options may follow a colon. The default is experiments/configs/default.py."
DEFAULT_CONFIG = Path(default.__file__)


def fail(message: object, status: int) -> NoReturn:
    """Ends the program with a message on standard error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def parse(argv: Sequence[str]) -> list[str]:
    """Parse absl flags and return the other arguments. An error ends the program with status 2.

    The default config is inserted here: a default of the flag would be read, with overrides, when the flag is defined,
    and its errors could not be caught.
    """
    if "config" in flags.FLAGS and not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    sys.argv = list(argv)  # where ml_collections looks for overrides
    try:
        _check(argv[1:])
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}: use flags, such as --NAME=VALUE")
        return rest
    except (flags.Error, ValueError, TypeError, OSError) as error:
        fail(_innermost(str(error)), USAGE_STATUS)


def numbers(flag: str, text: str, *, example: str, lowest: int = 0, highest: int | None = None) -> tuple[int, ...]:
    """The whole numbers in a flag's text, in order and without repetitions.

    Args:
        flag: the flag's name.
        text: the flag's value, such as `1,2,4`.
        example: a valid value for the error.
        lowest: the lowest allowed number.
        highest: the highest allowed number; None: no limit.

    Raises:
        ValueError: a part of the text is not a number, or is out of range.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and lowest <= int(part) <= (highest or int(part)) for part in parts):
        limits = f"from {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(
            f"--{flag}={text}: use whole numbers {limits}, separated by commas, such as --{flag}={example}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _check(arguments: Sequence[str]) -> None:
    keys = dict(_keys(default.get_config()))
    for i, argument in enumerate(arguments):
        match = re.fullmatch(r"--?(no)?config((?:\.\w+)*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            continue
        key, value = match[2].removeprefix("."), match[3]
        if not key:
            file = value if value is not None else "".join(arguments[i + 1 : i + 2])
            path = Path(file.split(":")[0])
            if not path.is_file():
                raise _no_such_file(path)
        elif key not in keys:
            raise unknown("config key", key, [name for name, group in keys.items() if not group])
        elif keys[key]:
            members = [name for name in keys if name.startswith(key + ".")]
            raise ValueError(f"config key {key!r} is a group: set one of {', '.join(members)}")


def _no_such_file(path: Path) -> ValueError:
    """The error for a missing config file; it lists the config files of its folder, or of all folders."""
    here = [file for file in path.parent.glob("*.py") if _is_config(file)]
    files = here if len(here) > 1 else [file for file in DEFAULT_CONFIG.parent.glob("*/*.py") if _is_config(file)]
    root = DEFAULT_CONFIG.parents[2]
    names = sorted(str(file.relative_to(root) if file.is_relative_to(root) else file) for file in files)
    return ValueError(f"no config file {str(path)!r}: use {', '.join(names)}")


def _is_config(path: Path) -> bool:
    return "def get_config(" in path.read_text()


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yields every key, with the names of its groups before it, and whether the key is a group."""
    for name in config:
        value: Any = config.get_ref(name).get()
        group = isinstance(value, ConfigDict)
        yield prefix + name, group
        if group:
            yield from _keys(value, f"{prefix}{name}.")


def _innermost(text: str) -> str:
    """The message of an error. For an error in a config file absl has a traceback, with the error as its last line."""
    if "Traceback" not in text:
        return text
    last = [line.strip() for line in text.splitlines() if line.strip()][-1]
    return re.sub(r"^\w+(Error|Exception): ", "", last)
