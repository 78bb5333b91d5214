"""Weights that are a function of their names, as in mdistiller's golden files."""

import zlib
from collections.abc import Mapping

import numpy as np


def weights_by_name(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights for names and shapes in PyTorch."""
    arrays = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) >= 2:
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_mean", "bias")):
            array = rng.uniform(-0.1, 0.1, shape)
        else:
            array = rng.uniform(0.8, 1.2, shape)
        arrays[name] = array.astype(np.float32)
    return arrays
