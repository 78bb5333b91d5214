"""Choices of objectives of distillation: numbers of stepping stones, and weights of terms."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd_local.ranges import WEIGHT, Number, Range

PART_WEIGHT = Number(0, 1e9, open_low=True, example=1, note="leave an objective of weight 0 out")
"""The weight of an objective in a combination of objectives."""

Stones = tuple[int, ...] | str
"""The numbers of the stones, or of the stages, to use, from 1, or `all`."""


def check_stones(stones: object, name: str = "stones") -> None:
    """Checks that `stones` is `all` or a tuple of integers. `stepping_stones` checks their range.

    Raises:
        ValueError: `stones` is anything else.
    """
    if stones == "all":
        return
    if not (isinstance(stones, tuple) and stones and all(type(number) is int for number in stones)) or len(
        set(stones)
    ) < len(stones):
        raise ValueError(f"{name} is {stones!r}: use all, or the numbers of some {name}, such as (2, 3)")


@dataclass(frozen=True)
class StoneNumbers:
    """The range of `Stones`; a config has the numbers as text."""

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, str) and value != "all":
            value = stone_numbers(value)
        check_stones(value, name.rpartition(".")[2])

    def read(self, name: str, text: str) -> str:
        self.check(name, text)
        return text

    def __str__(self) -> str:
        return "all, or numbers from 1 with commas between"


def stone_numbers(text: str) -> Stones:
    """`2,3` or `(2, 3)` as numbers; any other text unchanged."""
    if re.fullmatch(r"\s*(\(\s*{0}\s*\)|{0})\s*".format(r"[0-9]{1,9}(\s*,\s*[0-9]{1,9})*(\s*,)?"), text) is None:
        return text
    return tuple(map(int, re.findall("[0-9]+", text)))


def check_hyperparameters(ranges: Mapping[str, Range], values: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters outside of their ranges, and weights of a loss's terms that are all 0.

    Raises:
        ValueError: the first of them, by its name.
    """
    for name, range_ in ranges.items():
        range_.check(name, values[name])
    weights = [name for name, range_ in ranges.items() if range_ == WEIGHT]
    if weights and not any(values[name] for name in weights):
        raise ValueError(f"{' and '.join(weights)} {'are' if len(weights) > 1 else 'is'} 0, so no term trains: set one")
