"""The strengths of the operations of RandAugment, as the integers with which Pillow computes.

A strength is one of `LEVELS` equal steps of an operation's range. So its numbers are computed once, on the host, as
Pillow computes them, and the operations themselves are exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int32

OPERATIONS = (
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "identity",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
)
LEVELS = 256
NO_CHANGE = 1 << 16
"""The factor 1 of brightness, color, contrast and sharpness; factors are multiples of 2^-16."""
# `(no effect, low, high)` of the published ranges. Angles are in degrees, translations are shares of the image.
_RANGES = {
    "factor": (1.0, 0.05, 0.95),
    "posterize": (8.0, 4.0, 8.0),
    "rotate": (0.0, -30.0, 30.0),
    "shear_x": (0.0, -0.3, 0.3),
    "shear_y": (0.0, -0.3, 0.3),
    "solarize": (256.0, 0.0, 256.0),
    "translate_x": (0.0, -0.3, 0.3),
    "translate_y": (0.0, -0.3, 0.3),
}
_AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_FULL_SIZE = 10
_Matrix = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Strengths:
    """The numbers of each operation by level, for images of one size.

    Attributes:
        factor: the share of the image in a blend, in units of 2^-16.
        posterize: the bits that are kept.
        solarize: the lowest level that is inverted.
        affine: six coefficients (a, b, c, d, e, f) in units of 2^-16. The pixel at column x and row y is that of the
            column (a x + b y + c) >> 16 and the row (d x + e y + f) >> 16.
        affine_row: for each operation, the row of `affine`; row 0 changes nothing.
    """

    factor: Int32[np.ndarray, " levels"]
    posterize: Int32[np.ndarray, " levels"]
    solarize: Int32[np.ndarray, " levels"]
    affine: Int32[np.ndarray, "rows levels 6"]
    affine_row: Int32[np.ndarray, " operations"]


def values(name: str, m: float) -> list[float]:
    """The strength of an operation by level, in its own unit.

    >>> values("rotate", 10.0)[0], values("rotate", 5.0)[-1]
    (-29.8828125, 14.94140625)

    Args:
        name: `factor` (of brightness, color, contrast and sharpness), or the name of another operation.
        m: size of the range; at 10 it is the published one.
    """
    none, *ends = _RANGES[name]
    low, high = (none + (end - none) * m / _FULL_SIZE for end in ends)
    found = [low + (high - low) * (level + 0.5) / LEVELS for level in range(LEVELS)]
    return [round(value * NO_CHANGE) / NO_CHANGE for value in found] if name == "factor" else found


@cache
def strengths(m: float, height: int, width: int) -> Strengths:
    """The numbers of all operations, for images of height x width."""
    matrices: dict[str, list[_Matrix]] = {
        "rotate": [_rotation(angle, height, width) for angle in values("rotate", m)],
        "shear_x": [(1.0, v, 0.0, 0.0, 1.0, 0.0) for v in values("shear_x", m)],
        "shear_y": [(1.0, 0.0, 0.0, v, 1.0, 0.0) for v in values("shear_y", m)],
        "translate_x": [(1.0, 0.0, _nearest(v * width), 0.0, 1.0, 0.0) for v in values("translate_x", m)],
        "translate_y": [(1.0, 0.0, 0.0, 0.0, 1.0, _nearest(v * height)) for v in values("translate_y", m)],
    }
    rows: list[list[_Matrix]] = [[(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)] * LEVELS, *(matrices[name] for name in _AFFINE)]
    return Strengths(
        factor=_int32([value * NO_CHANGE for value in values("factor", m)]),
        posterize=_int32([256 - 2 ** (8 - int(value)) for value in values("posterize", m)]),
        solarize=_int32([math.ceil(value) for value in values("solarize", m)]),
        affine=_int32([[_fixed_point(matrix) for matrix in row] for row in rows]),
        affine_row=_int32([1 + _AFFINE.index(name) if name in _AFFINE else 0 for name in OPERATIONS]),
    )


def _int32(numbers: Sequence[Any]) -> Int32[np.ndarray, "..."]:
    return np.asarray(numbers).astype(np.int32)


def _nearest(pixels: float) -> float:
    return float(math.floor(pixels + 0.5))


def _rotation(degrees: float, height: int, width: int) -> _Matrix:
    """The matrix from new to old positions of a rotation about the centre, counter-clockwise."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cosine, sine, cosine * -x + sine * -y + 0.0 + x, -sine, cosine, -sine * -x + cosine * -y + 0.0 + y)


def _fixed_point(matrix: _Matrix) -> tuple[int, ...]:
    """The coefficients in units of 2^-16, for positions of the middles of pixels."""
    a, b, c, d, e, f = matrix
    numbers = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return tuple(math.floor(number * 65536.0 + 0.5) for number in numbers)
