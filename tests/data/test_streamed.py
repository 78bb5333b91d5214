"""Streamed batches are the same from any step and in any process."""

import importlib.util
import io
import signal
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_local.data import Examples, HostShare, StreamedSplit, epoch_order
from kd_local.data.crops import central_crop, crop_numbers, random_box
from kd_local.data.prepared import PreparedSplit, find
from kd_local.data.streamed import _cause
from tests.support.streamed import BATCH, EXAMPLES, SIZE, assert_same_steps, damaged, split_of, steps_of

pytest.importorskip("tensorflow_datasets")
grain = pytest.importorskip("grain")

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_it_implements_examples(prepared: PreparedSplit) -> None:
    split = split_of(prepared)
    assert isinstance(split, Examples)
    assert (len(split), split.shape, prepared.shape) == (EXAMPLES, (SIZE, SIZE, 3), (None, None, 3))
    for step, chosen, images, labels in steps_of(split, 0, 10):
        epoch, position = divmod(step, 5)
        rows = 2 if position == 4 else BATCH
        assert images.shape == (rows, SIZE, SIZE, 3) and images.dtype == np.uint8
        assert labels.shape == chosen.shape == (rows,) and labels.dtype == np.int32 and chosen.dtype == np.int64
        assert chosen.tolist() == epoch_order(5, epoch, EXAMPLES)[position * BATCH :][:rows].tolist()
        assert labels.tolist() == prepared.labels()[chosen].tolist()


def test_each_image_is_the_random_crop_of_its_epoch_and_place(prepared: PreparedSplit) -> None:
    boxes = []
    for step, chosen, images, _ in steps_of(split_of(prepared), 3, 4):
        for place, image in zip(chosen.tolist(), images, strict=True):
            ((_, encoded, _),) = prepared.encoded([place])
            decoded = Image.open(io.BytesIO(encoded))
            # In another form of the same: the counter is one number, of which each word has 64 bits.
            philox = np.random.Philox(key=5 + (step // 5 << 64), counter=(place << 128) + (1 << 192))
            uniform = np.floor(philox.random_raw(40) / 2.0**11) / 2.0**53
            left, top, width, height = random_box(*decoded.size, uniform.reshape(10, 4))
            boxes.append((left, top, width, height))
            part = decoded.crop((left, top, left + width, top + height))
            assert np.array_equal(image, np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    assert len(set(boxes)) == len(boxes)


RECORDED = [0.7392729637493114, 0.1727219477163251, 0.5406288079021218, 0.09103194331264786]


def test_crop_numbers_are_uniform_and_fixed() -> None:
    numbers = np.stack([crop_numbers(2**64 - 1, 3, place) for place in range(500)])
    assert numbers.shape == (500, 10, 4) and 0 <= numbers.min() < 1e-3 and 1 - 1e-3 < numbers.max() < 1
    assert numbers.mean(axis=(0, 1)) == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(numbers)) == numbers.size
    # Recorded once: others would make another run of a resumed one.
    assert crop_numbers(1, 2, 3)[0].tolist() == RECORDED


def test_batches_do_not_depend_on_the_first_step(prepared: PreparedSplit) -> None:
    chosen = np.delete(np.arange(EXAMPLES), [3, 4, 17])
    # Four batches in an epoch: from 6 on it is the middle of the second.
    reference = steps_of(split_of(prepared, chosen=chosen), 0, 9)
    assert_same_steps(steps_of(split_of(prepared, chosen=chosen), 6, 3), reference[6:])
    labels = np.concatenate([step[3] for step in reference[4:8]])
    assert sorted(labels.tolist()) == sorted(prepared.labels()[chosen].tolist())


def test_shares_make_up_the_batch(prepared: PreparedSplit) -> None:
    split = split_of(prepared)
    whole = steps_of(split, 2, 4)
    shares = [
        steps_of(split, 2, 4, share=HostShare(0, 2, 7)),  # batches of 7, and at the end of an epoch one of 2
        steps_of(split, 2, 4, share=HostShare(1, 2, 7)),
    ]
    for all_of_it, first, second in zip(whole, *shares, strict=True):
        assert np.array_equal(first[1], all_of_it[1]) and np.array_equal(second[1], all_of_it[1])
        if len(all_of_it[1]) == BATCH:
            assert (len(first[2]), len(second[2])) == (3, 4)
            for part in (2, 3):
                assert np.array_equal(np.concatenate([first[part], second[part]]), all_of_it[part])
        else:
            assert_same_steps([first, second], [all_of_it, all_of_it])


def test_a_share_reads_its_own_rows_only(prepared: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encoded = PreparedSplit.encoded
    monkeypatch.setattr(
        PreparedSplit, "encoded", lambda self, indices: (read.extend(indices), encoded(self, indices))[1]
    )
    ((_, chosen, images, _),) = steps_of(split_of(prepared), 0, 1, share=HostShare(1, 2, 1))
    assert len(images) == 4 and read == chosen[3:].tolist()
    read.clear()
    batches = list(split_of(prepared).evaluation_batches(8, HostShare(0, 2, 2)))
    assert len(batches) == 4 and read == [i for i in range(EXAMPLES) if i % 8 < 4]


def test_evaluation_batches_hold_central_crops_in_order(prepared: PreparedSplit) -> None:
    chosen = np.arange(2, EXAMPLES - 1)
    split = split_of(prepared, chosen=chosen)
    batches = [tuple(part.copy() for part in batch) for batch in split.evaluation_batches(8)]
    assert [images.shape for images, _, _ in batches] == [(8, SIZE, SIZE, 3)] * 4
    assert [valid.tolist() for _, _, valid in batches] == [[True] * 8] * 3 + [[True] * 3 + [False] * 5]
    images, labels, valid = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert labels[valid].tolist() == prepared.labels()[chosen].tolist()
    for image, (_, encoded, _) in zip(images[valid], prepared.encoded(chosen.tolist()), strict=True):
        assert np.array_equal(image, central_crop(encoded, SIZE))
    assert not images[~valid].any() and not labels[~valid].any()
    halves = [list(split_of(prepared, chosen=chosen).evaluation_batches(8, HostShare(i, 2, 2))) for i in (0, 1)]
    for whole, *parts in zip(batches, *halves, strict=True):
        for of_whole, *of_parts in zip(whole, *parts, strict=True):
            assert np.array_equal(of_whole, np.concatenate(of_parts))


def test_impossible_arguments_are_refused_at_once(prepared: PreparedSplit) -> None:
    with pytest.raises(ValueError, match="image_size 0: use 1 or more pixels"):
        StreamedSplit(prepared, image_size=0, workers=0)
    with pytest.raises(ValueError, match="workers -1: use 1 or more processes, or 0"):
        StreamedSplit(prepared, image_size=8, workers=-1)
    split = split_of(prepared, workers=1)
    with pytest.raises(ValueError, match="batch_size 31 for 30 examples: use 1 to 30"):
        split.training_batches(seed=0, batch_size=31)
    with pytest.raises(ValueError, match="step -1: use 0 or more; steps count from 0"):
        split.training_batches(seed=0, batch_size=3, start_step=-1)
    with pytest.raises(ValueError, match="batch_size 0: use 1 or more"):
        split.evaluation_batches(0)


def test_a_missing_grain_is_an_error(prepared: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "grain" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install grain, or pip install 'kd_local\[imagenet\]'"):
        split_of(prepared)


def test_a_damaged_image_is_named(prepare: Any, photograph: Any) -> None:
    whole = photograph(30, 20)
    prepared, place = damaged(prepare, photograph, whole[: len(whole) // 2])
    split = split_of(prepared)
    for batches in (split.training_batches(seed=0, batch_size=2), split.evaluation_batches(5)):
        with pytest.raises(ValueError, match=place + "its image does not decode: .*Copy this file again"):
            list(batches)


def test_a_missing_file_is_an_error(prepare: Any, photograph: Any) -> None:
    folder = find("imagenet2012", prepare("imagenet2012", shards=2, train=[(photograph(30, 20), 1)] * 4))
    (folder / "imagenet2012-train.array_record-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.array_record-00001-of-00002 is missing: "):
        PreparedSplit(folder, "train")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-signal.SIGBUS, "/dev/shm, where the batches are, is full: enlarge it, or use fewer workers"),
        (-signal.SIGTERM, "by SIGTERM"),
        (1, "its exit status is 1, and its message is above; your own program needs if __name__"),
    ],
)
def test_causes_of_a_workers_end_are_named(code: int, text: str) -> None:
    assert _cause(code).startswith(text)
