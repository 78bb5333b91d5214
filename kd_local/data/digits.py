"""Scans of handwritten digits that are part of the package: real images of 8x8 pixels.

They are the 1,797 scans of the test part of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49), licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/), as returned by scikit-learn's `load_digits`.
`digits.npz` has the scans in this order, unchanged, with values from 0 to 16 (`images` and `labels`),
and the indices of the two splits (`train` and `test`), which scikit-learn 1.9.1 chose by
`train_test_split(numpy.arange(1797), test_size=360, stratify=labels, random_state=0)`.
"""

from importlib import resources

import numpy as np
from jaxtyping import Int32, UInt8

_SCALE = 16


def read_digits(split: str) -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
    """Images (0 to 255) and labels (0 to 9) of the split `train` (1,437 examples) or `test` (360).

    Raises:
        KeyError: an unknown split.
    """
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        chosen = stored[split]
        images = stored["images"][chosen].astype(np.uint16)
        labels = stored["labels"][chosen].astype(np.int32)
    scaled = (images * 255 + _SCALE // 2) // _SCALE
    return scaled.astype(np.uint8)[..., None], labels
