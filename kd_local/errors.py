"""Errors for a value that is not one of the known choices, or of another type."""

import difflib
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

_MANY, _NEAREST = 20, 5


def unknown(what: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a value that is not one of the choices. The caller raises it.

    The message lists the choices in the given order. It also names the choice with a similar spelling, if any. Of many
    choices it lists only the nearest.

    >>> unknown("head", "1c2", ["0c1f", "1c2f"])
    ValueError("unknown head '1c2': use 0c1f or 1c2f (nearest: 1c2f)")

    Args:
        what: the noun for the value, such as `head`.
        value: the wrong value.
        choices: the valid values.
    """
    names = list(choices)
    if len(names) > _MANY:
        near = sorted(names, key=lambda name: _unlikeness(str(value).lower(), name.lower()))
        return ValueError(f"unknown {what} {value!r}: the nearest of {len(names)} are {', '.join(near[:_NEAREST])}")
    listed = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f" (nearest: {lower[near[0]]})" if near else ""
    return ValueError(f"unknown {what} {value!r}: use {listed}{hint}")


def check_type(what: str, value: object, kind: Any, way_out: str) -> None:
    """Check the type of an argument.

    Raises:
        ValueError: the value is of another type, with the way out, such as `use optax.sgd(0.1)`.
    """
    if not isinstance(value, kind):
        text = repr(value)
        raise ValueError(f"{what} is {text if len(text) <= 60 else f'a {type(value).__name__}'}: {way_out}")


def _unlikeness(value: str, name: str) -> tuple[float, int]:
    """Smaller for names with more letters in common and, of equal ones, with a longer common beginning."""
    return -difflib.SequenceMatcher(None, value, name).ratio(), -sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(value, name, strict=False))
    )
