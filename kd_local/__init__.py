"""Local learning (ContSup) and block-wise distillation (Block-KD) in JAX and Flax.

This module has the names that a notebook starts with; the subpackages have all others. A name's subpackage is imported
when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_local.data import augment, batches, load, normalise
    from kd_local.distill import BlockKD, Distillation, Teacher
    from kd_local.local import ContSup, EndToEnd, cut
    from kd_local.models import create
    from kd_local.parallel import compile_step
    from kd_local.training import train

__version__ = "0.1.0"

__all__ = [
    "BlockKD",
    "ContSup",
    "Distillation",
    "EndToEnd",
    "Teacher",
    "augment",
    "batches",
    "compile_step",
    "create",
    "cut",
    "load",
    "normalise",
    "train",
]

_SUBPACKAGES = {
    "data": ("augment", "batches", "load", "normalise"),
    "distill": ("BlockKD", "Distillation", "Teacher"),
    "local": ("ContSup", "EndToEnd", "cut"),
    "models": ("create",),
    "parallel": ("compile_step",),
    "training": ("train",),
}


def __getattr__(name: str) -> Any:
    for subpackage, names in _SUBPACKAGES.items():
        if name in names:
            return getattr(import_module(f"kd_local.{subpackage}"), name)
    raise AttributeError(f"module 'kd_local' has no attribute {name!r}")
