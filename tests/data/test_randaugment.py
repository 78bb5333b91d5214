"""RandAugment on the device, against Pillow."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_local.data.level_tables import (
    counted_by_comparison,
    counted_by_index,
    found_by_comparison,
    found_by_index,
)
from kd_local.data.randaugment import RandAugment, cut_out, operate, randaugment
from kd_local.data.strengths import LEVELS, OPERATIONS, strengths, values

GOLDEN = Path(__file__).parents[1] / "golden" / "randaugment.npz"


def check_equal(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Checks that pixels after an operation are Pillow's.

    Pillow computes 255 (x - low) / (high - low) of autocontrast in float64, a little below some whole numbers.
    """
    if name == "autocontrast":
        difference = found.astype(int) - expected
        assert difference.min() >= 0 and difference.max() <= 1 and difference.mean() < 0.01
    else:
        np.testing.assert_array_equal(found, expected)


def kinds_of_images(height: int, width: int, channels: int) -> np.ndarray:
    """One for each level of strength: with all levels, with few, with a narrow range, with smooth colours, constant."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (LEVELS, height, width, channels))
    images[1::5] = images[1::5] // 64 * 60
    images[2::5] = images[2::5] // random.integers(2, 9, (len(images[2::5]), 1, 1, 1)) + 20
    images[3::5] = np.add.outer(3 * np.arange(height), 4 * np.arange(width))[None, :, :, None]
    images[4::5] = 0
    return images.clip(0, 255).astype(np.uint8)


@partial(jax.jit, static_argnums=0)
def operated(m: float, images: jax.Array, operation: jax.Array, levels: jax.Array) -> jax.Array:
    operations = jnp.broadcast_to(operation, levels.shape)
    return operate(strengths(m, images.shape[1], images.shape[2]), images, operations, levels)


def at_levels(name: str, images: np.ndarray, levels: np.ndarray, *, m: float = 10.0) -> np.ndarray:
    """Each image after the operation with this name, at its level."""
    return np.asarray(operated(m, images, np.int32(OPERATIONS.index(name)), levels.astype(np.int32)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("height", "width", "channels", "m"),
    [
        (24, 25, 3, 10.0),
        pytest.param(32, 32, 3, 10.0, marks=pytest.mark.exhaustive),
        pytest.param(8, 8, 1, 10.0, marks=pytest.mark.exhaustive),
        pytest.param(33, 20, 3, 3.3, marks=pytest.mark.exhaustive),
    ],
)
def test_an_operation_is_that_of_pillow(name, height, width, channels, m):
    pytest.importorskip("PIL")
    from tests.support.pillow_operations import by_pillow

    images = kinds_of_images(height, width, channels)
    found = at_levels(name, images, np.arange(LEVELS), m=m)
    expected = np.stack([by_pillow(name, image, level, m=m) for level, image in enumerate(images)])
    check_equal(name, found, expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_the_golden_file(name):
    with np.load(GOLDEN) as golden:
        images, levels, expected = golden["images"], golden["levels"], golden[f"operations/{name}"]
    found = at_levels(name, np.concatenate([images] * len(levels)), levels.repeat(len(images))).reshape(expected.shape)
    check_equal(name, found, expected)


def test_cutout_is_that_of_the_golden_file():
    with np.load(GOLDEN) as golden:
        images, levels, expected = golden["images"], golden["cutout_levels"], golden["cutout"]
    repeated = jnp.asarray(np.concatenate([images] * len(levels)))
    found = jax.jit(jax.vmap(cut_out))(repeated, jnp.asarray(levels.repeat(len(images), axis=0), jnp.int32))
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("shape", [(9, 14, 3), (8, 8, 1)])
def test_cutout_is_that_of_pillow(shape):
    pytest.importorskip("PIL")
    from tests.support.pillow_operations import cut_out_by_pillow

    levels = np.random.default_rng(1).integers(0, LEVELS, (200, 3)).astype(np.int32)
    images = kinds_of_images(*shape)[: len(levels)]
    found = jax.jit(jax.vmap(cut_out))(jnp.asarray(images), jnp.asarray(levels))
    expected = [cut_out_by_pillow(image, tuple(each)) for image, each in zip(images, levels.tolist(), strict=True)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_forms_of_histograms_and_tables_give_the_same(channels):
    random = np.random.default_rng(0)
    pixels = jnp.asarray(random.integers(0, 256, (50, channels)), jnp.int32)
    table = jnp.asarray(random.integers(0, 256, (channels, 256)), jnp.int32)
    counts = [np.bincount(pixels[:, channel], minlength=256) for channel in range(channels)]
    new = np.stack([table[channel][pixels[:, channel]] for channel in range(channels)], axis=-1)
    for count, find in ((counted_by_index, found_by_index), (counted_by_comparison, found_by_comparison)):
        np.testing.assert_array_equal(count(pixels), counts)
        np.testing.assert_array_equal(find(table, pixels), new)


def test_operations_and_strengths_are_uniform():
    image, draws = kinds_of_images(8, 8, 3)[0], 2000
    copies = jnp.asarray(np.broadcast_to(image, (draws, *image.shape)))
    found = np.asarray(randaugment(RandAugment(n=1, cutout=False), copies, jax.random.key(0)))
    for name in ("brightness", "color", "solarize"):
        every = at_levels(name, np.broadcast_to(image, (LEVELS, *image.shape)), np.arange(LEVELS))
        level_of = {each.tobytes(): level for level, each in enumerate(every) if (each != image).any()}
        levels = np.array([level_of[each.tobytes()] for each in found if each.tobytes() in level_of])
        expected = draws / len(OPERATIONS)
        assert abs(len(levels) - expected) < 4 * np.sqrt(expected)
        assert abs(levels.mean() - LEVELS / 2) < 4 * LEVELS / np.sqrt(12 * expected)


def test_the_published_ranges_and_smaller_ones():
    assert -30 < values("rotate", 10.0)[0] < -29.8 and 29.8 < values("rotate", 10.0)[-1] < 30
    assert 0.05 < values("factor", 10.0)[0] < 0.06 and 0.94 < values("factor", 10.0)[-1] < 0.95
    assert {int(value) for value in values("posterize", 10.0)} == {4, 5, 6, 7}
    assert 0 < values("solarize", 10.0)[0] < 1 and 255 < values("solarize", 10.0)[-1] < 256
    # Half as far from no effect: 0 degrees, a factor of 1, 8 bits, 256.
    assert 14.9 < values("rotate", 5.0)[-1] < 15
    assert 0.52 < values("factor", 5.0)[0] < 0.53 and 0.97 < values("factor", 5.0)[-1] < 0.975
    assert {int(value) for value in values("posterize", 5.0)} == {6, 7}
    assert 128 < values("solarize", 5.0)[0] < 129


def test_the_key_determines_the_images():
    images = jnp.asarray(kinds_of_images(8, 8, 3)[:32])
    first, again, other = (randaugment(RandAugment(), images, jax.random.key(seed)) for seed in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_each_image_has_its_own_operations():
    images = jnp.asarray(np.stack([kinds_of_images(8, 8, 3)[0]] * 64))
    found = np.asarray(randaugment(RandAugment(cutout=False), images, jax.random.key(0)))
    assert len(np.unique(found.reshape(64, -1), axis=0)) > 50


@pytest.mark.long
def test_n_operations_are_applied():
    image = np.stack([kinds_of_images(16, 16, 3)[0]] * 256)
    changed = [
        (np.asarray(randaugment(RandAugment(n=n, cutout=False), jnp.asarray(image), jax.random.key(2))) != image)
        .any((1, 2, 3))
        .mean()
        for n in (1, 3)
    ]
    # Of noise with all levels, identity and autocontrast change nothing.
    assert 0.75 < changed[0] < 0.95 < changed[1]


def test_sharded_images_give_the_same_without_moving():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    images, divided = kinds_of_images(8, 8, 3)[:32], NamedSharding(mesh, PartitionSpec("data"))
    whole = randaugment(RandAugment(), jnp.asarray(images), jax.random.key(0))
    sharded = jax.device_put(images, divided)
    key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(partial(randaugment, RandAugment()), out_shardings=divided).lower(sharded, key).compile()
    np.testing.assert_array_equal(compiled(sharded, key), whole)
    for operation in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert operation not in compiled.as_text()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"n": 0}, "n is 0: use a whole number from 1 to 16"),
        ({"m": 0.0}, r"m is 0.0: use a number in \(0, 10\]"),
        ({"m": 30.0}, "m is 30.0"),
        ({"cutout": 1}, "cutout is 1: use true or false"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, text):
    with pytest.raises(ValueError, match=text):
        RandAugment(**numbers)


def test_images_with_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"4 channels: RandAugment takes grey images \(1\) or RGB \(3\)"):
        randaugment(RandAugment(), jnp.zeros((2, 8, 8, 4), jnp.uint8), jax.random.key(0))
