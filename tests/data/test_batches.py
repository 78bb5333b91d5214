"""Order and content of batches as a function of seed and step."""

import itertools

import numpy as np
import pytest

from kd_local.data import order as order_module
from kd_local.data.order import epoch_order, indices_at, steps_per_epoch
from kd_local.data.splits import Split, TrainingBatch


def _split(examples: int) -> Split:
    # The first pixel tells which example it is.
    images = np.zeros((examples, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(examples)
    return Split(images, np.arange(examples, dtype=np.int32) * 10)


def _batches(split: Split, batch_size: int, start_step: int, count: int) -> list[TrainingBatch]:
    return list(itertools.islice(split.training_batches(seed=9, batch_size=batch_size, start_step=start_step), count))


@pytest.mark.parametrize(("examples", "batch_size", "steps"), [(10, 5, 2), (11, 5, 3), (9, 1, 9), (7, 7, 1)])
def test_steps_per_epoch(examples: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(examples, batch_size) == steps


def test_epoch_order_is_a_fixed_permutation() -> None:
    order = epoch_order(3, 2, 12)
    assert sorted(order.tolist()) == list(range(12))
    # Recorded once: with another order a resumed run would not be the same run.
    assert order.tolist() == [11, 8, 2, 4, 10, 1, 3, 6, 5, 0, 7, 9]


def test_epoch_order_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(*key, 50).tolist() for key in [(0, 0), (0, 1), (1, 0), (1, 1), (2**64 - 1, 0)]]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_every_epoch_visits_each_example_once_and_keeps_the_last_smaller_batch() -> None:
    for epoch in range(3):
        labels = [labels for _, _, _, labels in _batches(_split(11), 4, epoch * 3, 3)]
        assert [len(part) for part in labels] == [4, 4, 3]
        assert np.concatenate(labels).tolist() == (epoch_order(9, epoch, 11) * 10).tolist()


def test_images_and_labels_stay_together() -> None:
    ((_, chosen, images, labels),) = _batches(_split(11), 4, 4, 1)
    assert (images[:, 0, 0, 0].astype(np.int32) * 10 == labels).all()
    assert labels.tolist() == (chosen * 10).tolist()


@pytest.mark.parametrize("start_step", [0, 1, 2, 3, 7])
def test_batches_are_the_same_from_any_step(start_step: int) -> None:
    split = _split(11)
    for (step, chosen, images, _), expected in zip(
        _batches(split, 4, start_step, 8), _batches(split, 4, 0, 16)[start_step:], strict=False
    ):
        assert step == expected[0]
        assert chosen.tolist() == expected[1].tolist() == indices_at(11, seed=9, batch_size=4, step=step).tolist()
        assert np.array_equal(images, expected[2])


def test_iterator_computes_the_order_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []

    def counted(seed: int, epoch: int, examples: int) -> np.ndarray:
        epochs.append(epoch)
        return epoch_order(seed, epoch, examples)

    monkeypatch.setattr(order_module, "epoch_order", counted)
    _batches(_split(20), 2, 15, 20)
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(("examples", "valid"), [(8, [4, 4]), (9, [4, 4, 1]), (4, [4])])
def test_evaluation_batches_are_of_one_size_and_cover_all_in_order(examples: int, valid: list[int]) -> None:
    split = _split(examples)
    parts = list(split.evaluation_batches(4))
    assert all(images.shape == (4, 2, 2, 1) for images, _, _ in parts)
    assert all(labels.shape == mask.shape == (4,) for _, labels, mask in parts)
    assert [int(mask.sum()) for _, _, mask in parts] == valid
    seen = np.concatenate([images[mask] for images, _, mask in parts])
    assert np.array_equal(seen, split.images)
    seen = np.concatenate([labels[mask] for _, labels, mask in parts])
    assert np.array_equal(seen, split.labels)
    images, labels, mask = parts[-1]
    assert not images[~mask].any() and not labels[~mask].any()


@pytest.mark.parametrize("batch_size", [-1, 0, 12])
def test_impossible_batch_sizes_are_refused(batch_size: int) -> None:
    split = _split(11)
    text = f"batch_size {batch_size} for 11 examples: use 1 to 11"
    with pytest.raises(ValueError, match=text):
        steps_per_epoch(11, batch_size)
    # Raised by the call, before a batch is asked for.
    with pytest.raises(ValueError, match=text):
        split.training_batches(seed=0, batch_size=batch_size)


def test_impossible_seeds_and_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seed -1: use a whole number from 0 to 2\*\*64 - 1"):
        epoch_order(-1, 0, 5)
    with pytest.raises(ValueError, match="seed 18446744073709551616"):
        _split(5).training_batches(seed=2**64, batch_size=2)
    with pytest.raises(ValueError, match="epoch -2: use 0 or more; epochs count from 0"):
        epoch_order(0, -2, 5)
    with pytest.raises(ValueError, match="step -1: use 0 or more; steps count from 0"):
        _split(5).training_batches(seed=0, batch_size=2, start_step=-1)
