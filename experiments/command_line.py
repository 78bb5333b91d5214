"""Flags of the programs, refused in one message: what was given, what was expected, and the way out."""

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
DEFAULT_CONFIG = Path(default.__file__)


def fail(message: object, status: int) -> NoReturn:
    """End the program with a message on standard error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def parse(argv: Sequence[str]) -> list[str]:
    """Parse absl flags, `--config` among them; on a mistake say it and exit with status 2.

    The default config is put in here and not as the flag's default, which would be read, overrides and all, when the
    flag is defined: before a mistake in them can be caught.
    """
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    sys.argv = list(argv)  # where ml_collections looks for overrides
    try:
        _check(argv[1:])
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}: everything is given by flags, as --config.epochs=30")
        return rest
    except (flags.Error, ValueError, TypeError, OSError) as error:
        fail(_innermost(str(error)), USAGE_STATUS)


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
    """The error for a config file that does not exist; it lists those of the folder, or of all folders."""
    here = [file for file in path.parent.glob("*.py") if _is_config(file)]
    files = here if len(here) > 1 else [file for file in DEFAULT_CONFIG.parent.glob("*/*.py") if _is_config(file)]
    root = DEFAULT_CONFIG.parents[2]
    names = sorted(str(file.relative_to(root) if file.is_relative_to(root) else file) for file in files)
    return ValueError(f"no config file {str(path)!r}: use {', '.join(names)}")


def _is_config(path: Path) -> bool:
    return "def get_config(" in path.read_text()


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every key with its groups' names before it, and whether it is a group."""
    for name in config:
        value: Any = config.get_ref(name).get()
        group = isinstance(value, ConfigDict)
        yield prefix + name, group
        if group:
            yield from _keys(value, f"{prefix}{name}.")


def _innermost(text: str) -> str:
    """Of an error raised while a config file was read, absl gives the whole traceback: its last line is the error."""
    if "Traceback" not in text:
        return text
    last = [line.strip() for line in text.splitlines() if line.strip()][-1]
    return re.sub(r"^\w+(Error|Exception): ", "", last)
