"""The shape and the size of a cache of a teacher's logits."""

from pathlib import Path

from kd_local.data import Augmentation
from kd_local.training.checked_rows import CheckedRows


def varies(augmentation: Augmentation, *, strong: bool = False) -> bool:
    """True if random augmentation changes an image from step to step; `strong`: in the strong view."""
    return strong or augmentation.pad > 0 or augmentation.flip


def cache_shape(
    augmentation: Augmentation, *, examples: int, classes: int, batch_size: int, steps: int, strong: bool = False
) -> tuple[int, ...]:
    """Shape of the cache of a view: `(steps, batch, classes)`, or `(examples, classes)` if images do not vary."""
    return (steps, batch_size, classes) if varies(augmentation, strong=strong) else (examples, classes)


def cache_bytes(shape: tuple[int, ...]) -> int:
    """Bytes on disk of a cache of this shape: the logits, and a checksum for each row."""
    return CheckedRows(Path("logits.npy"), "", shape).size
