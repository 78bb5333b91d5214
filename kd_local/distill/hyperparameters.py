"""Checks of the numbers that an objective is made with."""

import math


def check_weights(**weights: float | int) -> None:
    """Weights of a loss's terms must be finite and not negative.

    Raises:
        ValueError: the first that is not.
    """
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}: use a finite number, 0 or larger; 0 leaves the term out")


def check_positive(**numbers: float | int) -> None:
    """Temperatures, sizes and the like must be finite and above 0.

    Raises:
        ValueError: the first that is not.
    """
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}: use a finite number above 0")
