"""Makes randaugment.npz: images after each operation of RandAugment and after cutout, by Pillow.

    python -m tests.golden.make_randaugment

`images` are uint8 [n, h, w, 3]. `operations/NAME` has the image i at the level `levels[j]` as [j, i, h, w, 3];
`cutout` has them for the three levels `cutout_levels[j]`.
"""

from pathlib import Path

import numpy as np

from kd_local.data.strengths import OPERATIONS
from tests.support.pillow_operations import by_pillow, cut_out_by_pillow

LEVELS = (0, 77, 255)
CUTOUT_LEVELS = ((0, 128, 128), (255, 0, 255), (200, 255, 30))


def images() -> np.ndarray:
    """Images with all levels, with few, with a narrow range, and with smooth colours."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (26, 22, 3))
    ramp = np.arange(26).reshape(-1, 1, 1) * 5 + np.arange(22).reshape(1, -1, 1) * 3 + np.array([0, 20, 60])
    return np.stack([noise, noise // 64 * 60, noise // 5 + 90, ramp]).astype(np.uint8)


def main() -> None:
    arrays = {"images": images(), "levels": np.array(LEVELS), "cutout_levels": np.array(CUTOUT_LEVELS)}
    for name in OPERATIONS:
        arrays[f"operations/{name}"] = np.stack([[by_pillow(name, x, level) for x in images()] for level in LEVELS])
    arrays["cutout"] = np.stack([[cut_out_by_pillow(x, levels) for x in images()] for levels in CUTOUT_LEVELS])
    np.savez_compressed(Path(__file__).with_name("randaugment.npz"), **arrays)


if __name__ == "__main__":
    main()
