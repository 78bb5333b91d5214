"""Crops, flips and normalisation, against numpy."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_local.data.augmentation import Augmentation, augment, check_shape, normalise

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
REFLECT = Augmentation(padding="reflect", pad=3, flip=True, mean=MEAN, std=STD)
ZERO = Augmentation(padding="zero", pad=2, flip=True, mean=MEAN, std=STD)


def _images(n: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def _normalised(images: np.ndarray) -> np.ndarray:
    return (images - np.array(MEAN)) / np.array(STD)


def _all_crops(augmentation: Augmentation, image: np.ndarray) -> dict[tuple[int, int, bool], Any]:
    pad, (height, width, _) = augmentation.pad, image.shape
    mode = {"reflect": "reflect", "zero": "constant"}[augmentation.padding]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)  # type: ignore[call-overload]
    crops = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + height, column : column + width]
            crops[row, column, False] = _normalised(crop)
            if augmentation.flip:
                crops[row, column, True] = _normalised(crop[:, ::-1])
    return crops


def _found(augmentation: Augmentation, images: np.ndarray, seed: int) -> list[Any]:
    # Which crop of its own image each one became; it must be exactly one.
    augmented = np.asarray(augment(augmentation, jnp.asarray(images), jax.random.key(seed)))
    found = []
    for image, result in zip(images, augmented, strict=True):
        crops = _all_crops(augmentation, image)
        matches = [key for key, crop in crops.items() if np.allclose(crop, result, atol=1e-5)]
        assert len(matches) == 1
        found += matches
    return found


@pytest.mark.parametrize("augmentation", [REFLECT, ZERO])
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_each_image_becomes_one_of_its_crops(augmentation: Augmentation, size: tuple[int, int]) -> None:
    found = _found(augmentation, _images(64, *size), seed=0)
    offsets = set(range(2 * augmentation.pad + 1))
    assert {row for row, _, _ in found} == {column for _, column, _ in found} == offsets
    assert {flip for _, _, flip in found} == {False, True}
    # Each image has its own, and rows, columns and flips do not go together.
    assert len(set(found)) > 25
    assert any(row != column for row, column, _ in found)


def test_offsets_and_flips_are_uniform() -> None:
    found = np.array(_found(ZERO, _images(1, 4, 4).repeat(500, axis=0), seed=1), np.int64)
    for draws, values in ((found[:, 0], 5), (found[:, 1], 5), (found[:, 2], 2)):
        counts = np.bincount(draws, minlength=values)
        # Five standard deviations.
        assert (np.abs(counts - 500 / values) < 5 * np.sqrt(500 / values)).all()


@pytest.mark.parametrize(("pad", "flip"), [(2, False), (0, True)])
def test_the_key_determines_crops_and_flips(pad: int, flip: bool) -> None:
    augmentation = Augmentation(pad=pad, flip=flip, mean=MEAN, std=STD)
    images = jnp.asarray(_images(16))
    first, again, other = (augment(augmentation, images, jax.random.key(seed)) for seed in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_zero_padding_is_black_before_normalisation() -> None:
    white = np.full((32, 4, 4, 3), 255, np.uint8)
    augmented = np.asarray(augment(ZERO, jnp.asarray(white), jax.random.key(0)))
    inside, outside = _normalised(np.full(3, 255)), _normalised(np.zeros(3))
    is_black = np.isclose(augmented, outside, atol=1e-5).all(-1)
    assert is_black.any()
    assert (is_black | np.isclose(augmented, inside, atol=1e-5).all(-1)).all()


def test_without_pad_and_flip_images_are_only_normalised() -> None:
    plain = Augmentation(mean=MEAN, std=STD)
    images = _images(4)
    augmented = augment(plain, jnp.asarray(images), jax.random.key(0))
    np.testing.assert_allclose(augmented, _normalised(images), atol=1e-6)
    np.testing.assert_allclose(normalise(plain, jnp.asarray(images)), _normalised(images), atol=1e-6)


def test_without_flip_nothing_is_mirrored() -> None:
    augmentation = Augmentation(padding="reflect", pad=2, flip=False, mean=MEAN, std=STD)
    assert not any(flip for _, _, flip in _found(augmentation, _images(32), seed=0))


def test_dtype() -> None:
    images = jnp.asarray(_images(4))
    narrow = normalise(ZERO, images, jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    # Rounded once, at the end.
    assert jnp.array_equal(narrow, normalise(ZERO, images).astype(jnp.bfloat16))
    single = augment(ZERO, images, jax.random.key(0))
    with jax.enable_x64(True):
        wide = augment(ZERO, images, jax.random.key(0), dtype=jnp.float64)
        assert wide.dtype == jnp.float64
        # The same crops.
        np.testing.assert_allclose(wide, single, atol=1e-5)
        exact = normalise(ZERO, images, jnp.float64)
        np.testing.assert_allclose(exact, _normalised(np.asarray(images)), rtol=1e-14)


@pytest.mark.parametrize("augmentation", [REFLECT, ZERO])
def test_sharded_images_give_the_same_without_moving(augmentation: Augmentation) -> None:
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices")
    mesh = Mesh(np.array(devices[:8]), ("data",))
    images, rng = _images(32), jax.random.key(3)
    compiled = jax.jit(augment, static_argnums=0)
    single = compiled(augmentation, jnp.asarray(images), rng)

    sharded_images = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    sharded_rng = jax.device_put(rng, NamedSharding(mesh, PartitionSpec()))
    sharded = compiled(augmentation, sharded_images, sharded_rng)
    assert sharded.sharding.spec == PartitionSpec("data")
    assert np.array_equal(sharded, single)
    text = compiled.lower(augmentation, sharded_images, sharded_rng).compile().as_text() or ""
    assert re.search(r"u8\[4,8,8,3\]", text), "each device should hold 4 of the 32 images"
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", text)


def test_augmentations_are_hashable_and_compare_by_value() -> None:
    same = Augmentation(padding="zero", pad=2, flip=True, mean=MEAN, std=STD)
    assert same == ZERO and hash(same) == hash(ZERO) and same != REFLECT


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"padding": "reflct"}, r"unknown padding 'reflct': use reflect or zero \(nearest: refl"),
        ({"pad": -1}, "pad is -1: use a whole number from 0 .* 0 is no crop"),
        ({"mean": ()}, r"mean \(\) and std .*: give both with one number for each channel"),
        ({"std": (1.0,)}, r"std \(1.0,\): give both with one number for each channel"),
        ({"std": (1.0, 0.0, 1.0)}, "std .*: use numbers from 0.255 to 255"),
        ({"mean": (1.0, float("nan"), 1.0)}, "mean .*: use numbers from 0 to 255"),
    ],
)
def test_impossible_values_are_refused(changed: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The checker of types, which users do not run, would catch a wrong padding first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=text):
        Augmentation(**{"padding": "zero", "mean": MEAN, "std": STD, **changed})


def test_images_that_do_not_fit_are_refused() -> None:
    grey = jnp.zeros((2, 8, 8, 1), jnp.uint8)
    with pytest.raises(ValueError, match="images have 1 channels, .* mean has 3"):
        augment(ZERO, grey, jax.random.key(0))
    with pytest.raises(ValueError, match="images have 1 channels, .* mean has 3"):
        normalise(ZERO, grey)
    with pytest.raises(ValueError, match="images of 3x8 are too small for reflect padding of 3 pixels: use a smaller"):
        check_shape(REFLECT, (3, 8, 3))
    check_shape(REFLECT, (4, 8, 3))
