"""Names and ranges of local learning: contexts, heads, losses, and the arguments of `kd_local.local.cut`."""

import re
from collections.abc import Mapping, Sequence
from numbers import Real

from kd_local.ranges import Number, Range

HEADS: tuple[str, ...] = ("0c1f", "0c2f", "1c1f", "1c2f", "1c3f", "2c2f", "dgl", "dgl_wide", "pool")
DEFAULT_HEAD = "1c2f"
HEADS_WITH_HIDDEN_UNITS: tuple[str, ...] = ("0c2f", "1c2f", "1c3f", "2c2f")
"""The heads whose hidden units `feature_width` sets."""
HEADS_WITH_A_WIDTH: tuple[str, ...] = ("0c2f", "1c1f", "1c2f", "1c3f", "2c2f", "dgl", "dgl_wide", "pool")
"""The heads that `aux_width` changes."""
LOSSES: tuple[str, ...] = ("softmax", "contrast", "predsim")
LOSSES_OF_LOGITS: tuple[str, ...] = ("softmax", "predsim")
"""The local losses whose heads classify: their outputs are logits."""
IMAGE_ENCODERS: tuple[str, ...] = ("full", "pooled")
REMATERIALIZABLE: tuple[str, ...] = ("blocks", "contexts", "head", "decoder")
"""The names that `remat` may contain: networks of a module that the backward pass can recompute instead of storing."""
FEATURE_WIDTH = 128
RANGES: Mapping[str, Range] = {
    "modules": Number(1, 1000, whole=True),
    "classes": Number(1, 10**6, whole=True, example=10),
    # With 1/12 an image encoder has one channel.
    "aux_width": Number(1 / 12, 64, example=1),
    "feature_width": Number(1, 65536, whole=True, example=FEATURE_WIDTH),
    "channels_at_once": Number(1, 65536, whole=True, example=8),
}
"""Of the arguments of `cut`."""


def unused_remat(names: Sequence[str], *, modules: int, context: str, decoder: bool) -> tuple[str, ...]:
    """The names of `REMATERIALIZABLE` among `names` whose networks no module has.

    >>> unused_remat(("blocks", "decoder"), modules=4, context="R1", decoder=False)
    ('decoder',)
    """
    there = {"blocks": True, "contexts": modules > 1 and context != "R0", "head": modules > 1, "decoder": decoder}
    return tuple(name for name in names if not there.get(name, True))


LossScale = tuple[float, float, float, float]
_LARGEST_SCALE = 1e6


def read_context(name: str) -> tuple[int, bool]:
    """The n and the E of a context's name: R0, E, R1, R1E, or Rn / RnE with n >= 1.

    >>> read_context("R2E")
    (2, True)

    Raises:
        ValueError: the name has another form.
    """
    match = re.fullmatch(r"E|R(0|[1-9][0-9]*)(E?)", name)
    if match is None or name == "R0E":
        near = name.strip().upper()
        known = re.fullmatch(r"E|R0|R[1-9][0-9]*E?", near)
        hint = f" (nearest: {near})" if known else ""
        raise ValueError(f"unknown context {name!r}: use R0, E, R1, R1E, or Rn / RnE with n >= 1{hint}")
    if len(match[1] or "") > 3:
        raise ValueError(f"context {name!r}: use at most 999 preceding modules, such as R1")
    return int(match[1] or 0), name.endswith("E")


def check_loss_scale(scale: Sequence[float]) -> LossScale:
    """The scale as four floats, see `kd_local.local.loss_scales`.

    Raises:
        ValueError: the scale does not have four numbers, or a number is negative or not finite.
    """
    numbers = isinstance(scale, tuple | list) and all(isinstance(number, Real) for number in scale)
    if not numbers or len(scale) != 4 or not all(0 <= number <= _LARGEST_SCALE for number in scale):
        raise ValueError(
            f"loss scale {scale}: give four numbers >= 0, at most 1e6: weights of reconstruction and head at "
            "the first boundary and at the last, such as (5, 0.05, 0.2, 0.5)"
        )
    first_reconstruction, first_head, last_reconstruction, last_head = map(float, scale)
    return first_reconstruction, first_head, last_reconstruction, last_head


def check_loss_pair(pair: Sequence[float]) -> tuple[float, float]:
    """The weights of reconstruction and head at one boundary as floats.

    Raises:
        ValueError: they are not two numbers, or one is negative or not finite.
    """
    numbers = all(isinstance(number, Real) for number in pair)
    if not numbers or len(pair) != 2 or not all(0 <= number <= _LARGEST_SCALE for number in pair):
        raise ValueError(
            f"loss scale has the pair {pair}: give two numbers >= 0, at most 1e6, the weights of reconstruction and "
            "head at a boundary, such as (5, 0.5)"
        )
    reconstruction, head = map(float, pair)
    return reconstruction, head


def check_widths(feature_width: int, aux_width: float) -> None:
    """Checks that both widths are in their ranges, and that a head has hidden units.

    Raises:
        ValueError: they are not.
    """
    RANGES["aux_width"].check("aux_width", aux_width)
    RANGES["feature_width"].check("feature_width", feature_width)
    if int(feature_width * aux_width) < 1:
        raise ValueError(
            f"feature_width is {feature_width}, of which aux_width {aux_width} leaves none: use a larger one; "
            f"{FEATURE_WIDTH} is the published width"
        )
