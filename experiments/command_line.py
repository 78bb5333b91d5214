"""Parses the flags of the programs. An error is one line with the value, what was expected and a way out."""

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from experiments.config_flag import config_flag, split_arguments
from experiments.configs.reference import usage
from kd_local.choices.steps import COUNTED, TARGETS
from kd_local.errors import unknown

USAGE_STATUS = 2
HELP_FLAGS = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-?"}


def fail(message: object, status: int) -> NoReturn:
    """Ends the program with a message on standard error."""
    print(f"error: {described(message)}", file=sys.stderr)
    sys.exit(status)


def print_text(text: str) -> None:
    """Prints the whole output of a program. A reader that stops early, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes once more at its end


def described(message: object) -> object:
    """The message; for an error of the system, its file and its text."""
    if isinstance(message, OSError) and message.filename is not None and message.strerror is not None:
        return f"{str(message.filename)!r} cannot be used ({message.strerror}): the same command starts once it can"
    return message


def parse(argv: Sequence[str]) -> list[str]:
    """Parse flags, those of flag files included, load the config, and return the other arguments.

    An error ends the program with status 2, `--help` with status 0.
    """
    if HELP_FLAGS & set(argv[1:]):
        _show_help()
    try:
        arguments = _with_flag_files(argv[1:])
        config = config_flag()
        texts: dict[str, str] = {}
        if config is not None:
            arguments, texts = split_arguments(arguments)
            if len({argument for argument in arguments if argument.startswith(("--config=", "-config="))}) > 1:
                raise ValueError("--config is given twice: give one config file")
        rest = flags.FLAGS([argv[0], *arguments])
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}: use flags, such as --NAME=VALUE")
        if config is not None:
            config.load(texts)
        return rest
    except flags.IllegalFlagValueError as error:
        fail(_wrong_flag(str(error)), USAGE_STATUS)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        fail(error, USAGE_STATUS)


def numbers(flag: str, text: str, *, example: str, lowest: int = 0, highest: int = 10**6) -> tuple[int, ...]:
    """The distinct whole numbers in a flag's text, in its order.

    Raises:
        ValueError: a part of the text is not a number, or is out of range.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and lowest <= int(part) <= highest for part in parts):
        raise ValueError(
            f"--{flag}={text}: use whole numbers from {lowest} to {highest}, separated by commas, such as "
            f"--{flag}={example}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _wrong_flag(text: str) -> str:
    """absl's message `flag --NAME=VALUE: ...` in the form of the other messages, with what was expected."""
    found = re.match(r"flag --(\w+)=(.*?): ", text, re.DOTALL)
    if found is None or found[1] not in flags.FLAGS:
        return text
    return f"--{found[1]}={found[2]}: use {flags.FLAGS[found[1]].parser.syntactic_help or 'true or false'}"


def _with_flag_files(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the contents of flag files in place of `--flagfile=FILE`.

    Raises:
        ValueError: a file cannot be read.
    """
    try:
        return flags.FLAGS.read_flags_from_files(list(arguments), force_gnu=True)
    except flags.CantOpenFlagFileError as error:
        raise ValueError(f"a flag file cannot be read: {str(error).rpartition('flagfile: ')[2]}") from None


def _show_help() -> NoReturn:
    module = sys.modules["__main__"]
    text = f"{module.__doc__ or ''}\nFlags:\n{flags.FLAGS.main_module_help()}\n"
    if config_flag() is not None:
        text += "\n" + "\n".join(["Keys of the config, each with its default:", *usage()])
    print_text(text)
    sys.exit(0)


def check_counted(target: str) -> None:
    """Checks that the time of a step on the target of --target can be measured or predicted.

    Raises:
        ValueError: it cannot, or the target is unknown.
    """
    if target in TARGETS and target not in COUNTED:
        raise ValueError(
            f"--target={target}: the compiler of GPUs does not count operations, so that no time can be predicted; use "
            f"{', '.join(COUNTED)}, or run this on a GPU"
        )
    if target not in COUNTED:
        raise unknown("target", target, COUNTED)
