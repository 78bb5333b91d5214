"""The choice of training examples and of examples that are held out."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from kd_local.data.order import epoch_order
from kd_local.data.splits import WHOLE, Examples, HostShare, Split, check_limits, choose_examples

LABELS = np.repeat(np.arange(4, dtype=np.int32), (100, 50, 30, 20))


def test_parts_have_the_class_proportions() -> None:
    kept, held_out, _ = choose_examples(LABELS, 100, 40)
    assert np.bincount(LABELS[kept]).tolist() == [50, 25, 15, 10]
    assert np.bincount(LABELS[held_out]).tolist() == [20, 10, 6, 4]
    assert not set(kept) & set(held_out)
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()


@pytest.mark.parametrize("size", [1, 3, 7, 13, 41, 99, 173])
def test_parts_are_within_two_examples_of_proportion_at_any_size(size: int) -> None:
    kept, *_ = choose_examples(LABELS, size, 11)
    counts = np.bincount(LABELS[kept], minlength=4)
    assert counts.sum() == size
    assert (np.abs(counts - size * np.array([0.5, 0.25, 0.15, 0.1])) < 2).all()


def test_without_limits_everything_is_kept_in_order() -> None:
    kept, held_out, _ = choose_examples(LABELS, None, 0)
    assert kept.tolist() == list(range(200)) and held_out.size == 0
    kept, held_out, _ = choose_examples(LABELS, None, 37)
    assert sorted([*kept, *held_out]) == list(range(200)) and held_out.size == 37


def test_larger_parts_contain_smaller_ones_in_random_order() -> None:
    small, held_out, _ = choose_examples(LABELS, 20, 40)
    large, held_out_again, _ = choose_examples(LABELS, 120, 40)
    assert set(small) < set(large)
    assert held_out.tolist() == held_out_again.tolist()
    assert set(choose_examples(LABELS, None, 10)[1]) < set(held_out)
    assert held_out.max() > 190 and set(held_out) != set(np.r_[0:20, 100:110, 150:156, 180:184])


def test_the_choice_of_examples_is_fixed() -> None:
    # Recorded once: another choice would silently change what published runs were tested on.
    assert choose_examples(LABELS, 3, 6)[1].tolist() == [0, 54, 66, 102, 162, 185]


def test_test_examples_are_the_same_for_any_number_of_others() -> None:
    train, validation, test = choose_examples(LABELS, 50, 40, 20)
    assert np.bincount(LABELS[test]).tolist() == [10, 5, 3, 2]
    assert np.bincount(LABELS[validation]).tolist() == [20, 10, 6, 4]
    assert len({*train, *validation, *test}) == 110 and (np.diff(test) > 0).all()
    assert choose_examples(LABELS, None, 0, 20).test.tolist() == test.tolist()
    assert set(test) < set(choose_examples(LABELS, None, 0, 30).test)


@pytest.mark.parametrize(
    ("train", "validation", "test", "text"),
    [
        (None, 0, -1, r"test_examples -1 of 50 training examples: use 0 .the data set's own test split. to 48"),
        (None, 0, 49, r"test_examples 49 of 50 training examples: .* to 48"),
        (None, 40, 10, r"validation_examples 40 of 40 training examples \(50 minus 10 for testing\): use 0 .* to 38"),
        (
            31,
            10,
            10,
            r"train_examples 31 of 30 training examples \(50 minus 10 for testing and 10 for validation\): use",
        ),
    ],
)
def test_impossible_limits_with_test_examples(train: int | None, validation: int, test: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_limits(50, train, validation, test)


@pytest.mark.parametrize(
    ("train", "validation", "text"),
    [
        (None, -1, r"validation_examples -1 of 50 training examples: use 0 .* to 48"),
        (None, 49, r"validation_examples 49 of 50 training examples: use 0 .* to 48"),
        (0, 0, r"train_examples 0 of 50 training examples: use 2 to 50, or None"),
        (1, 0, r"train_examples 1 of 50 training examples: use 2 to 50"),
        (-3, 10, r"train_examples -3 of 40 training examples \(50 minus 10 for validation\)"),
        (41, 10, r"train_examples 41 of 40 .*: use 2 to 40, or None for all"),
    ],
)
def test_impossible_limits_are_refused(train: int | None, validation: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_limits(50, train, validation)


def test_possible_limits_are_accepted() -> None:
    check_limits(50, None, 0)
    check_limits(50, 50, 0)
    check_limits(50, 2, 48)


@pytest.mark.parametrize(
    ("share", "batch", "rows"),
    [
        (WHOLE, 5, (0, 5)),
        (HostShare(0, 2, 4), 8, (0, 4)),
        (HostShare(1, 2, 4), 8, (4, 8)),
        (HostShare(2, 3, 3), 12, (8, 12)),
        # A batch that the devices do not divide is whole on each.
        (HostShare(1, 2, 4), 6, (0, 6)),
        (HostShare(1, 2, 4), 3, (0, 3)),
    ],
)
def test_rows_of_a_share(share: HostShare, batch: int, rows: tuple[int, int]) -> None:
    assert share.rows(batch) == slice(*rows)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((2, 2, 2), "process 2 of 2: use 1 or more processes, and an index from 0 to processes - 1"),
        ((0, 0, 1), "process 0 of 0: use 1 or more processes"),
        ((-1, 2, 2), "process -1 of 2"),
        ((0, 1, 0), "a batch is divided over 0 devices: use 1 or more"),
    ],
)
def test_impossible_shares_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        HostShare(*arguments)


def _split(examples: int) -> Split:
    images = np.arange(examples * 6, dtype=np.uint8).reshape(examples, 2, 3, 1)
    return Split(images, np.arange(examples, dtype=np.int32) * 10)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (np.zeros((5, 3, 32, 32), np.uint8), np.zeros(5, np.int32), "channels first: use .*np.moveaxis"),
        (np.zeros((5, 32, 32), np.uint8), np.zeros(5, np.int32), "with c = 1 for grey images"),
        (np.zeros((5, 8, 8, 3), np.float32), np.zeros(5, np.int32), "images are float32: use uint8"),
        (np.zeros((5, 8, 8, 3), np.uint16), np.zeros(5, np.int32), "images are uint16: use uint8"),
        (np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, np.int64), "labels are int64: use int32"),
        (np.zeros((5, 8, 8, 3), np.uint8), np.zeros((5, 2), np.int32), r"for one-hot labels labels.argmax"),
        (np.zeros((5, 8, 8, 3), np.uint8), np.zeros(4, np.int32), "images and labels are 5 and 4: give equal"),
    ],
)
def test_arrays_that_are_not_a_split_are_refused(images: Any, labels: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Split(images, labels)


def test_images_in_memory_are_examples() -> None:
    split = _split(11)
    assert isinstance(split, Examples)
    assert split.shape == (2, 3, 1) and len(split) == 11
    for step, chosen, images, labels in islice(split.training_batches(seed=3, batch_size=4, start_step=2), 5):
        epoch, position = divmod(step, 3)
        assert chosen.tolist() == epoch_order(3, epoch, 11)[position * 4 :][:4].tolist()
        assert np.array_equal(images, split.images[chosen]) and np.array_equal(labels, split.labels[chosen])


def test_shares_in_memory_make_up_the_batch() -> None:
    split = _split(11)
    shares = [HostShare(index, 2, 2) for index in (0, 1)]
    steps = zip(*(split.training_batches(seed=3, batch_size=4, share=share) for share in (WHOLE, *shares)), strict=True)
    sizes = []
    for whole, first, second in islice(steps, 6):
        sizes.append((len(whole[2]), len(first[2]), len(second[2])))
        assert np.array_equal(whole[1], first[1]) and np.array_equal(whole[1], second[1])
        for part in (2, 3):
            together = first[part] if len(whole[1]) % 2 else np.concatenate([first[part], second[part]])
            assert np.array_equal(together, whole[part])
    assert sizes == [(4, 2, 2), (4, 2, 2), (3, 3, 3)] * 2
    for batch_size in (4, 8):
        batches = zip(*(split.evaluation_batches(batch_size, share) for share in (WHOLE, *shares)), strict=True)
        for parts_of in batches:
            for of_whole, *of_parts in zip(*parts_of, strict=True):
                assert np.array_equal(of_whole, np.concatenate(of_parts))
