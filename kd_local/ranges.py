"""Ranges of arguments, hyper-parameters and config keys: what a value may be, how text gives it, and its description.

A range is defined once: beside the class or function whose argument it is, or in `kd_local.choices`, if a config needs
it before JAX is imported.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Protocol, runtime_checkable

from kd_local.errors import unknown


@runtime_checkable
class Range(Protocol):
    """The values that something may have. `str` of it is a description, such as `a number in [0, 1)`."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value outside of the range.

        Raises:
            ValueError: with the name, the value and the range.
        """
        ...

    def read(self, name: str, text: str) -> Any:
        """The value that a text, such as that of a flag, gives; it is checked too.

        Raises:
            ValueError: the text has another form, or its value is outside of the range.
        """
        ...


@dataclass(frozen=True)
class Number:
    """Finite numbers of an interval.

    Attributes:
        low, high: the ends of the interval.
        whole: True if only integers are in the range.
        open_low, open_high: True if the end itself is not in the range.
        example: a usual value.
        note: added to the error.
    """

    low: float | int
    high: float | int
    whole: bool = False
    open_low: bool = False
    open_high: bool = False
    example: float | int | None = None
    note: str = ""

    def check(self, name: str, value: Any) -> None:
        number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        if not number or not self._holds(value):
            raise self._error(name, value)

    def read(self, name: str, text: str) -> float | int:
        try:
            if not text.isascii():  # Python reads digits of every script
                raise ValueError
            value = int(text) if self.whole else float(text)
        except ValueError:
            raise self._error(name, text) from None
        self.check(name, value)
        return value

    def __str__(self) -> str:
        if self.whole:
            return f"a whole number from {_shown(self.low)} to {_shown(self.high)}"
        brackets = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"a number in {brackets[0]}{_shown(self.low)}, {_shown(self.high)}{brackets[1]}"

    def _holds(self, value: Any) -> bool:
        return (
            math.isfinite(value)
            and (value > self.low if self.open_low else value >= self.low)
            and (value < self.high if self.open_high else value <= self.high)
        )

    def _error(self, name: str, value: Any) -> ValueError:
        example = "" if self.example is None else f", such as {_shown(self.example)}"
        return ValueError(f"{name} is {_written(value)}: use {self}{example}{f'; {self.note}' if self.note else ''}")


@dataclass(frozen=True)
class Choice:
    """One of some names.

    Attributes:
        noun: the word for such a name, used in the error.
        names: the names.
    """

    noun: str
    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in self.names:
            error = unknown(self.noun, value, self.names)
            raise ValueError(f"{name}: {error}") if "." in name else error

    def read(self, name: str, text: str) -> str:
        self.check(name, text)
        return text

    def __str__(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class Switch:
    """True or False; the text is `true` or `false`."""

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}: use true or false")

    def read(self, name: str, text: str) -> bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name} is {text!r}: use true or false")
        return text.lower() in ("true", "1")

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    """Texts of a form.

    Attributes:
        form: the form in words.
        parse: raises ValueError for a text of another form; None if a later step checks it.
        empty: True if an empty text is one.
    """

    form: str
    parse: Callable[[str], object] | None = None
    empty: bool = False

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or "\0" in value or not (value.strip() or self.empty):
            raise ValueError(f"{name} is {_written(value)}: use {self.form}")
        if self.parse is not None:
            try:
                self.parse(value)
            except ValueError as error:
                raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None

    def read(self, name: str, text: str) -> str:
        self.check(name, text)
        return text

    def __str__(self) -> str:
        return self.form


@dataclass(frozen=True)
class Numbers:
    """Tuples of numbers; the text has commas between them, as `2,3` or `(2, 3)`.

    Attributes:
        each: the range of each number.
        least: the least length.
        rising: True if each number is larger than the one before.
        example: a usual value.
    """

    each: Number
    least: int = 0
    rising: bool = False
    example: tuple[float | int, ...] = ()

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, tuple | list) or len(value) < self.least or len(value) > 1000:
            raise self._error(name, value)
        for number in value:
            try:
                self.each.check(name, number)
            except ValueError:
                raise self._error(name, value) from None
        if self.rising and list(value) != sorted(set(value)):
            raise self._error(name, value)

    def read(self, name: str, text: str) -> tuple[float | int, ...]:
        parts = [part.strip() for part in text.strip().removeprefix("(").removesuffix(")").split(",")]
        parts = parts[:-1] if parts[-1] == "" else parts  # (3,)
        parts = [] if parts == ["none"] else parts
        try:
            value = tuple(self.each.read(name, part) for part in parts)
        except ValueError:
            raise self._error(name, text) from None
        self.check(name, value)
        return value

    def __str__(self) -> str:
        least = f"{self.least} or more " if self.least else ""
        return f"{least}{'increasing ' if self.rising else ''}numbers with commas between, each {self.each}"

    def _error(self, name: str, value: Any) -> ValueError:
        example = f", such as {','.join(map(_shown, self.example))}" if self.example else ""
        return ValueError(f"{name} is {_written(value)}: use {self}{example}")


def check_arguments(ranges: Mapping[str, Range], **arguments: Any) -> None:
    """Check each argument against the range of its name.

    Raises:
        ValueError: the first that is outside.
    """
    for name, value in arguments.items():
        ranges[name].check(name, value)


def _written(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _shown(number: float | int) -> str:
    return str(number) if isinstance(number, int) else f"{number:.7g}"


WEIGHT = Number(0, 1e9, note="0 leaves the term out")
"""Weights of the terms of a loss."""
TEMPERATURE = Number(1e-3, 1e4, example=4)

Weight = Annotated[float, WEIGHT]
"""A weight of a term of a loss. Where a class has several, one of them is above 0."""
Temperature = Annotated[float, TEMPERATURE]


@dataclass(frozen=True)
class Weighted:
    """Annotates a hyper-parameter of terms of a loss: it has no effect if their weights are all 0.

    Attributes:
        weights: the names of the weights.
    """

    weights: tuple[str, ...]


WarmupEpochs = Annotated[int, Number(0, 100_000, whole=True, note="0 is no warm-up")]
"""Epochs over which a weight grows."""
Flag = Annotated[bool, Switch()]
