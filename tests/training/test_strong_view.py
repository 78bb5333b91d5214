"""The strong view of a run's batches: a function of seed and step, the same in every form of the loop."""

from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import STRONG_VIEW, Program
from kd_local.data import Augmentation, Data, RandAugment, StreamedSplit, augment_strongly
from kd_local.local import EndToEnd
from kd_local.memory import footprint, target
from kd_local.parallel import JOINED, StepOptions, device_mesh, over_the_batch
from kd_local.training import train
from kd_local.training.inputs import augmented, keys, strong_view
from tests.support import tiny
from tests.support.prepared import examples, photograph, prepare, prepare_once  # noqa: F401
from tests.support.streamed import SIZE, prepared, streamed_folder  # noqa: F401

AUGMENTATION = Augmentation(pad=1, flip=True, mean=(128.0,), std=(64.0,))
DATA = tiny.data(19, 9, augmentation=AUGMENTATION)  # batches of 8, 8 and 3
SEED, BATCH = 3, 8


def summed(images):
    """A number that depends on every pixel and on the order of the images."""
    weights = np.random.default_rng(0).standard_normal((16, *images.shape[1:])).astype(np.float32)
    return jnp.sum(images * weights[: len(images)])


@dataclass(frozen=True)
class SumsViews:
    """Two programs that sum what they read in each step: both views, and the strong view once more."""

    classes: int = 4
    deployed_program = None

    def init(self, rng, images):
        return {name: {"params": jnp.zeros(2), "opt_state": ()} for name in ("first", "second")}

    def programs(self):
        def first(part, frozen, tensors, rng, constants):
            weak, strong = tensors
            total = 0.5 * part["params"] + jnp.stack([summed(weak), summed(strong)])
            return {**part, "params": total}, (weak.mean(axis=(1, 2, 3)),), {"loss": total[0]}

        def second(part, frozen, tensors, rng, constants):
            means, strong = tensors
            total = 0.5 * part["params"] + jnp.stack([means.sum(), summed(strong)])
            return {**part, "params": total}, (), {"loss": total[0]}

        return (
            Program("first", "first", first, ("images", STRONG_VIEW), ("means",)),
            Program("second", "second", second, ("means", STRONG_VIEW)),
        )

    def logits(self, state, images):
        return jnp.zeros((len(images), self.classes)) + state["first"]["params"][0]

    def exits(self, state, images):
        return {}

    def deployed(self, state):
        return state["first"]["params"]


@cache
def expected(data, steps):
    """The sums after some steps, from the views of each batch."""
    rng, batched = keys(SEED)[0], over_the_batch(device_mesh(), BATCH)
    sums = np.zeros(2)
    with closing(data.train.training_batches(seed=SEED, batch_size=BATCH, start_step=0)) as batches:
        for step, _, images, _ in islice(batches, steps):
            arguments = (data.augmentation, batched, jnp.asarray(images), rng, jnp.uint32(step))
            views = augmented(*arguments)[0], strong_view(*arguments)
            sums = 0.5 * sums + [summed(view) for view in views]
    return sums


def check(data=DATA, *, epochs=2, **arguments):
    result = train(SumsViews(data.classes), data, epochs=epochs, batch_size=BATCH, seed=SEED, **arguments)
    sums = expected(data, result.step)
    np.testing.assert_allclose(result.state["first"]["params"], sums, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(result.state["second"]["params"][1], sums[1], rtol=1e-4, atol=1e-3)


FORMS = {
    "host": {},
    "on the devices": {"on_devices": True},
    "joined": {"options": StepOptions(JOINED)},
    "several steps per call": {"options": StepOptions(JOINED, 2), "on_devices": True},
    "several steps per call, from the host": {"options": StepOptions(JOINED, 2)},
    "two devices": {"mesh": device_mesh(2)},
    "two devices, several steps per call": {
        "mesh": device_mesh(2), "options": StepOptions(JOINED, 2), "on_devices": True,
    },
    "two groups of devices": {"mesh": device_mesh(1, 2)},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.usually("host")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_loop_gives_the_same_views(form):
    check(**FORMS[form])


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [1, 2])
def test_streamed_images(prepared, steps):  # noqa: F811
    split = StreamedSplit(prepared, image_size=SIZE, workers=0)
    augmentation = Augmentation(flip=True, mean=(128.0,) * 3, std=(64.0,) * 3)
    data = Data("imagenet2012", split, split, None, 1000, augmentation)
    check(data, epochs=1, options=StepOptions(JOINED, steps) if steps > 1 else StepOptions())


@pytest.mark.long
def test_the_settings_of_the_strong_view_are_those_of_the_augmentation():
    weaker = replace(DATA, augmentation=replace(AUGMENTATION, strong=RandAugment(n=1, m=2.0, cutout=False)))
    first, second = (expected(data, 2) for data in (DATA, weaker))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_without_operations_the_views_differ_by_their_crops():
    """Crops and flips of the views are independent: of many images, few are the same."""
    images = jnp.asarray(np.stack([DATA.train.images[0]] * 256))
    arguments = (AUGMENTATION, over_the_batch(device_mesh(), 256), images, keys(SEED)[0], jnp.uint32(0))
    weak, strong = augmented(*arguments)[0], strong_view(*arguments)
    identity = np.asarray((weak == strong).all(axis=(1, 2, 3)))
    # A strong view is a crop without change in fewer than 1 of 7 cases, and then one of 18 crops.
    assert identity.mean() < 0.03
    assert len({image.tobytes() for image in np.asarray(strong)}) > 200


def test_both_views_are_normalised():
    white = jnp.full((64, 8, 8, 1), 255, jnp.uint8)
    strong = np.asarray(augment_strongly(replace(AUGMENTATION, pad=0), white, jax.random.key(0)))
    assert strong.dtype == np.float32
    assert strong.max() == np.float32((255 - 128) / 64) and strong.min() >= np.float32(-2)


def test_runs_that_read_no_strong_view_do_not_compute_it(monkeypatch):
    def refuse(*_):
        raise AssertionError("a strong view is made")

    data = replace(DATA, augmentation=replace(AUGMENTATION, mean=(100.0,)))  # other executables than in other tests
    monkeypatch.setattr("kd_local.training.training_step.strong_view", refuse)
    train(EndToEnd(tiny.network(), optax.sgd(0.1)), data, epochs=1, batch_size=BATCH, steps=1)
    with pytest.raises(AssertionError, match="a strong view is made"):
        train(SumsViews(), data, epochs=1, batch_size=BATCH, steps=1)


def test_images_with_two_channels_are_refused_before_compilation():
    two = Augmentation(mean=(128.0,) * 2, std=(64.0,) * 2)
    split = replace(DATA.train, images=DATA.train.images.repeat(2, axis=-1))
    data = replace(DATA, train=split, test=split, augmentation=two)
    with pytest.raises(ValueError, match=r"images have 2 channels: RandAugment takes grey images \(1\) or RGB \(3\)"):
        train(SumsViews(), data, epochs=1, batch_size=BATCH)


def test_a_strong_view_of_the_caller_is_refused():
    with pytest.raises(ValueError, match="extra has images_strong, which is made from the images: use Augmentation"):
        train(SumsViews(), DATA, epochs=1, batch_size=BATCH, extra={STRONG_VIEW: lambda step, chosen: np.zeros(1)})


def test_the_footprint_counts_the_strong_view():
    found = footprint(SumsViews(), (8, 8, 1), 16, target("local", devices=2))
    image, scalar = 8 * 8 * 8 * 4, 8 * 4
    # On each of two devices: both views, labels, and the means that the first program writes.
    assert [piece.carried for piece in found.pieces] == [2 * image + 2 * scalar, image + 2 * scalar]
