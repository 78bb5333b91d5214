"""Weights that are a function of their names, as in mdistiller's golden files."""

import zlib
from collections.abc import Mapping

import numpy as np


def weights_by_name(shapes: Mapping[str, tuple[int, ...]], *, gain: float = 2) -> dict[str, np.ndarray]:
    """Weights for names and shapes in PyTorch; `gain` is that of tensors with two or more dimensions."""
    arrays = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) >= 2:
            array = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        elif name.endswith(("running_mean", "bias")):
            array = rng.uniform(-0.1, 0.1, shape)
        else:
            array = rng.uniform(0.8, 1.2, shape)
        arrays[name] = array.astype(np.float32)
    return arrays
