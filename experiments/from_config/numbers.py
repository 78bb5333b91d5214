"""Reads numbers that a config has as text."""

import math
from collections.abc import Sequence

BALANCED = "balanced"
_RANGES = {"mean": (0.0, "[0, 1]", "0.485,0.456,0.406"), "std": (1e-3, "[0.001, 1]", "0.229,0.224,0.225")}


def numbers(key: str, text: str, expected: str, example: str) -> tuple[float, ...]:
    """The numbers of a text such as `0.5,0.25`.

    Raises:
        ValueError: the text is not a list of numbers. The error names `key`, what was expected, and an example.
    """
    try:
        if not text.isascii():
            raise ValueError
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{key} is {text!r}: use {expected}, separated by commas, such as {example}") from None


def pixel_numbers(key: str, text: str, usual: Sequence[float] | None = None) -> tuple[float, ...]:
    """The mean or the standard deviation of each channel, on the scale 0 to 255.

    Args:
        key: the key, whose last word is `mean` or `std`.
        text: numbers on the scale 0 to 1.
        usual: the usual values, one for each channel; None if the number of channels is not known yet.

    Raises:
        ValueError: the text has another form, another number of values, or a value that is out of range.
    """
    lowest, interval, example = _RANGES[key.rpartition(".")[2]]
    each = "channel" if usual is None else f"of the {len(usual)} channels"
    expected, example = f"a number in {interval} for each {each}", example if usual is None else _fractions(usual)
    values = numbers(key, text, expected, example)
    right_count = usual is None or len(values) == len(usual)
    if right_count and all(lowest <= number <= 1 for number in values):
        return tuple(255 * number for number in values)
    if right_count and all(lowest <= number <= 255 for number in values):
        example = f"{_fractions(values)} (these divided by 255)"
    raise ValueError(f"{key} is {text!r}: use {expected}, such as {example}")


def class_weights(text: str, classes: int | None = None) -> tuple[float, ...]:
    """The weights of the classes in the loss; `classes` is None if their number is not known yet.

    Raises:
        ValueError: the text has another form, or a value that is not a finite number above 0.
    """
    each, count = ("class", 2) if classes is None else (f"of the {classes} classes", classes)
    expected = f"{BALANCED!r}, or a number above 0 for each {each}"
    weights = numbers("loss.class_weights", text, expected, ",".join(["1"] * (count - 1) + ["2"])[-40:])
    for label, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"loss.class_weights has {weight} for class {label}: use finite numbers above 0")
    return weights


def _fractions(pixels: Sequence[float]) -> str:
    return ",".join(f"{value / 255:.4g}" for value in pixels)
