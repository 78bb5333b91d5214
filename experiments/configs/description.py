"""The description of a config key: its default, its range, what uses it, and its meaning."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections.config_dict import FieldReference, placeholder

from kd_local.errors import unknown
from kd_local.ranges import Number, Range, Text

Values = Mapping[str, Any]
"""The values of all keys by their full names, such as `local.modules`."""


@dataclass(frozen=True)
class Use:
    """A condition under which a key has an effect.

    Attributes:
        text: the condition in words, such as `optimizer.name=sgd`.
        holds: returns True if the values meet the condition.
    """

    text: str
    holds: Callable[[Values], bool]


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        default: its value unless a config or the command line sets another; a placeholder has a type and no value.
        values: the range of its values.
        meaning: the meaning of its value.
        uses: conditions that must all be met for the key to have an effect; empty if it always has one.
        path: True if the key names a file or folder.
    """

    default: Any
    values: Range
    meaning: str
    uses: tuple[Use, ...] = ()
    path: bool = False

    @property
    def optional(self) -> bool:
        """True if the key can be left without a value."""
        return isinstance(self.default, FieldReference)

    @property
    def shown(self) -> str:
        """The default as a command line takes it."""
        return shown(None if self.optional else self.default)

    def value(self) -> Any:
        """The default as a config holds it."""
        return placeholder(self.default.get_type()) if self.optional else self.default

    def check(self, name: str, value: Any) -> None:
        """Refuse a value outside of the range.

        Raises:
            ValueError: see `Range.check`.
        """
        if value is not None:
            self.values.check(name, value)
        elif not self.optional:
            raise ValueError(f"{name} is None: use {self.values}")

    def read(self, name: str, text: str) -> Any:
        """The value that a text of the command line gives; `none`, or nothing, unsets a key without a default.

        Raises:
            ValueError: see `Range.read`.
        """
        if self.optional and text.strip().lower() in ("none", "") and not (self.path and not text.strip()):
            return None
        value = self.values.read(name, text)
        return float(value) if isinstance(self.values, Number) and not self.values.whole else value


Group = Mapping[str, Key]


def when(key: str, *values: Any) -> Use:
    """The condition that a key has one of these values."""
    words = " or ".join(", ".join(map(shown, values)).rsplit(", ", 1))
    return Use(f"{key}={words}", lambda given: given[key] in values)


def above(key: str, number: float) -> Use:
    """The condition that a key is larger than a number."""
    return Use(f"{key} above {number:g}", lambda given: given[key] > number)


def path(meaning: str, *uses: Use) -> Key:
    """A key without a default that names a file or folder."""
    return Key(placeholder(str), Text("a path, or none"), meaning, uses, path=True)


def names_with_commas(noun: str, names: tuple[str, ...], *single: str) -> Callable[[str], None]:
    """Checks names with commas between, or a single word."""

    def check(text: str) -> None:
        for name in () if text in single else text.split(","):
            if name.strip() in single:
                raise ValueError(f"{noun} {name.strip()!r} with others: use it alone, or leave it out")
            if name.strip() not in names:
                raise unknown(noun, name.strip(), (*single, *names))

    return check


def shown(value: Any) -> str:
    """A value as a command line takes it."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def attributes(documented: type) -> dict[str, str]:
    """The `Attributes` section of a class's docstring: the text of each attribute, on one line."""
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", inspect.getdoc(documented) or "", re.MULTILINE)
    found = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found
