"""The operations of RandAugment and cutout, by Pillow."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from kd_local.data.strengths import LEVELS, values

ENHANCED = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def by_pillow(name: str, image: np.ndarray, level: int, *, m: float = 10.0) -> np.ndarray:
    """An image [h, w, c] after an operation, with c = 1 (grey) or 3."""
    found = _operations(as_pillow(image), level, m)[name]()
    return np.asarray(found).reshape(image.shape)


def cut_out_by_pillow(image: np.ndarray, levels: tuple[int, int, int]) -> np.ndarray:
    """An image after cutout; levels of the square's side and of its position in x and y."""
    of_side, of_x, of_y = ((level + 0.5) / LEVELS for level in levels)
    height, width, channels = image.shape
    side = of_side * 0.5 * width
    x, y = (size + (1 - size) * at for size, at in ((width, of_x), (height, of_y)))
    left, top = (int(max(0, at - side / 2)) for at in (x, y))
    box = (left, top, min(width, left + side), min(height, top + side))
    found = as_pillow(image)
    ImageDraw.Draw(found).rectangle(box, (125, 123, 114) if channels == 3 else 123)
    return np.asarray(found).reshape(image.shape)


def as_pillow(image: np.ndarray) -> Image.Image:
    """An image [h, w, c] in mode L or RGB."""
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def _operations(image: Image.Image, level: int, m: float) -> dict[str, Callable[[], Image.Image]]:
    width, height = image.size

    def at(name: str) -> float:
        return values(name, m)[level]

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    def enhanced(name: str) -> Image.Image:
        return ENHANCED[name](image).enhance(at("factor"))

    return {
        **{name: lambda name=name: enhanced(name) for name in ENHANCED},  # type: ignore[misc]
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(at("posterize"))),
        "rotate": lambda: image.rotate(at("rotate")),
        "shear_x": lambda: affine(1, at("shear_x"), 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, at("shear_y"), 1, 0),
        "solarize": lambda: ImageOps.solarize(image, at("solarize")),  # type: ignore[arg-type]
        "translate_x": lambda: affine(1, 0, at("translate_x") * width, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, at("translate_y") * height),
    }
