"""Which examples are trained on and which are held out."""

import numpy as np
import pytest

from kd_local.data.splits import check_limits, parts

LABELS = np.repeat(np.arange(4, dtype=np.int32), (100, 50, 30, 20))


def test_parts_hold_the_classes_in_proportion() -> None:
    kept, held_out = parts(LABELS, 100, 40)
    assert np.bincount(LABELS[kept]).tolist() == [50, 25, 15, 10]
    assert np.bincount(LABELS[held_out]).tolist() == [20, 10, 6, 4]
    assert not set(kept) & set(held_out)
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()


@pytest.mark.parametrize("size", [1, 3, 7, 13, 41, 99, 173])
def test_parts_are_within_two_examples_of_proportion_at_any_size(size: int) -> None:
    kept, _ = parts(LABELS, size, 11)
    counts = np.bincount(LABELS[kept], minlength=4)
    assert counts.sum() == size
    assert (np.abs(counts - size * np.array([0.5, 0.25, 0.15, 0.1])) < 2).all()


def test_without_limits_everything_is_kept_in_order() -> None:
    kept, held_out = parts(LABELS, None, 0)
    assert kept.tolist() == list(range(200)) and held_out.size == 0
    kept, held_out = parts(LABELS, None, 37)
    assert sorted([*kept, *held_out]) == list(range(200)) and held_out.size == 37


def test_smaller_parts_lie_in_larger_ones_and_are_not_the_first_of_each_class() -> None:
    small, held_out = parts(LABELS, 20, 40)
    large, held_out_again = parts(LABELS, 120, 40)
    assert set(small) < set(large)
    assert held_out.tolist() == held_out_again.tolist()
    assert set(parts(LABELS, None, 10)[1]) < set(held_out)
    assert held_out.max() > 190 and set(held_out) != set(np.r_[0:20, 100:110, 150:156, 180:184])


def test_the_choice_stays_what_it_is() -> None:
    # Recorded once: another choice would silently change what published runs were tested on.
    assert parts(LABELS, 3, 6)[1].tolist() == [0, 54, 66, 102, 162, 185]


@pytest.mark.parametrize(
    ("train", "validation", "text"),
    [
        (None, -1, r"validation_examples -1 of 50 training examples: use 0 .* to 49"),
        (None, 50, r"validation_examples 50 of 50 training examples: use 0 .* to 49"),
        (0, 0, r"train_examples 0 of 50 training examples .*: use 1 to 50, or None"),
        (-3, 10, r"train_examples -3 of 40 training examples \(50 less 10 for validation\)"),
        (41, 10, r"train_examples 41 of 40 .*: use 1 to 40, or None for all"),
    ],
)
def test_impossible_limits(train: int | None, validation: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_limits(50, train, validation)


def test_possible_limits() -> None:
    check_limits(50, None, 0)
    check_limits(50, 50, 0)
    check_limits(50, 1, 49)
