"""Reads data sets that tensorflow-datasets prepared, and tests the errors if they cannot be read."""

import importlib.util
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_local.data.prepared import PreparedSplit, find

pytest.importorskip("tensorflow_datasets")
SHAPE = (32, 32, 3)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _in_written_order(
    read: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read
    order = np.argsort(images[:, 0, 0, 0])
    return images[order], labels[order]


def test_examples_equal_those_that_were_written(prepare: Any, examples: Any) -> None:
    written = examples(100, SHAPE, 100)
    split = PreparedSplit(find("cifar100", prepare("cifar100", train=written)), "train")
    assert (len(split), split.shape, split.classes) == (100, SHAPE, 100)
    images, labels = split.examples()
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert labels.tolist() == split.labels().tolist() != list(range(100))
    images, labels = _in_written_order((images, labels))
    assert np.array_equal(images, np.stack([image for image, _ in written]))
    assert labels.tolist() == list(range(100))


def test_chosen_examples_are_read_in_the_given_order(
    prepare: Any, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_local.data.prepared._CHUNK", 4)
    folder = find("cifar100", prepare("cifar100", shards=2, train=examples(30, SHAPE, 100)))
    split = PreparedSplit(folder, "train")
    all_images, all_labels = split.examples()
    chosen = np.array([29, 3, 17, 3, 0, 11])
    images, labels = split.examples(chosen)
    assert np.array_equal(images, all_images[chosen])
    assert np.array_equal(labels, all_labels[chosen])


def test_only_chosen_images_are_decoded(prepare: Any, examples: Any) -> None:
    written = examples(20, SHAPE, 100)
    written[7] = (b"no image", 7)
    split = PreparedSplit(find("cifar100", prepare("cifar100", train=written)), "train")
    labels = split.labels()
    fine = np.flatnonzero(labels != 7)
    assert np.array_equal(split.examples(fine)[1], labels[fine])


@pytest.mark.parametrize("name", ["cifar100", "svhn_cropped"])
def test_a_data_set_that_is_not_prepared_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "incomplete.X_3.0.2").mkdir(parents=True)
    (tmp_path / name / "incomplete.X_3.0.2" / "dataset_info.json").write_text("{}")
    line = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir='{tmp_path}', file_format='array_record').download_and_prepare()\""
    )
    with pytest.raises(
        FileNotFoundError, match=f"no prepared {name} in {re.escape(str(tmp_path / name))}: give"
    ) as error:
        find(name, tmp_path)
    assert line in str(error.value)


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "stl10"))):
        find("stl10")


def test_the_newest_version_is_used(tmp_path: Path) -> None:
    for version in ("3.0.2", "3.0.10", "2.9.9"):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
        (tmp_path / "cifar10" / version / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert find("cifar10", str(tmp_path)) == tmp_path / "cifar10" / "3.0.10"


def _rewrite(file: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def test_another_format_is_refused(prepare: Any, examples: Any) -> None:
    data_dir = prepare("cifar100", train=examples(3, SHAPE, 100))
    info = find("cifar100", data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="is prepared as tfrecord, .* or remove .* and prepare"):
        find("cifar100", data_dir)


def test_damaged_metadata_are_an_error(prepare: Any, examples: Any) -> None:
    data_dir = prepare("cifar100", train=examples(3, SHAPE, 100))
    folder = find("cifar100", data_dir)
    (folder / "features.json").unlink()
    with pytest.raises(ValueError, match="is not a prepared set of labelled images"):
        PreparedSplit(folder, "train")
    for content, problem in (('{"fileFormat": ', "no JSON"), ("[]", "a JSON list in"), ("{}", "no 'fileFormat'")):
        (folder / "dataset_info.json").write_text(content)
        with pytest.raises(ValueError, match=rf"dataset_info.json' is damaged \({problem}.*: remove .* and prepare"):
            find("cifar100", data_dir)


def test_an_unknown_split_is_refused(prepare: Any, examples: Any) -> None:
    folder = find("cifar100", prepare("cifar100", train=examples(3, SHAPE, 100)))
    with pytest.raises(ValueError, match="has no split 'test': use train"):
        PreparedSplit(folder, "test")


def test_a_missing_file_is_an_error(prepare: Any, examples: Any) -> None:
    data_dir = prepare("cifar100", shards=2, train=examples(30, SHAPE, 100))
    folder = find("cifar100", data_dir)
    (folder / "cifar100-train.array_record-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match="train.array_record-00001-of-00002 is missing: "):
        PreparedSplit(folder, "train")


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"no image", "its image does not decode: "),
        (np.zeros((16, 32, 3), np.uint8), r"its image is \(16, 32, 3\), not \(32, 32, 3\)"),
    ],
)
def test_a_damaged_image_is_named(prepare: Any, damaged: Any, reason: str) -> None:
    written = [(damaged, label) for label in range(30)]
    folder = find("cifar100", prepare("cifar100", shards=2, train=written))
    split = PreparedSplit(folder, "train")
    (info,) = json.loads((folder / "dataset_info.json").read_text())["splits"]
    places = [(shard, record) for shard, length in enumerate(info["shardLengths"]) for record in range(int(length))]
    assert len(places) == 30
    for index, (shard, record) in enumerate(places):
        file = re.escape(str(folder / f"cifar100-train.array_record-0000{shard}-of-00002"))
        with pytest.raises(ValueError, match=f"^record {record} of {file}: {reason}"):
            split.examples(np.array([index]))


def test_a_label_out_of_range_is_named(prepare: Any, examples: Any) -> None:
    written = [*examples(3, SHAPE, 100), (np.zeros(SHAPE, np.uint8), -1)]
    split = PreparedSplit(find("cifar100", prepare("cifar100", train=written)), "train")
    text = r"record \d of .*train.*: its label is -1, not 0 to 99"
    with pytest.raises(ValueError, match=text):
        split.labels()
    with pytest.raises(ValueError, match=text):
        split.examples()


def test_a_damaged_file_is_named(prepare: Any, examples: Any) -> None:
    folder = find("cifar100", prepare("cifar100", train=examples(60, SHAPE, 100)))
    file = folder / "cifar100-train.array_record-00000-of-00001"

    def garble(content: bytearray) -> None:
        content[40_000:40_100] = bytes(100)

    def cut(content: bytearray) -> None:
        del content[len(content) // 2 :]

    _rewrite(file, garble)
    with pytest.raises(ValueError, match=r"record [1-9]\d? of .*-train.*: it cannot be read: Corr"):
        PreparedSplit(folder, "train").labels()
    _rewrite(file, cut)
    with pytest.raises(ValueError, match="record 0 of .*train.*: it cannot be read: .*Copy this"):
        PreparedSplit(folder, "train").examples()


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record"])
def test_a_missing_library_is_an_error(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    package = module.replace("tensorflow_d", "tensorflow-d")
    with pytest.raises(ModuleNotFoundError, match=f"not tensorflow.: pip install {package}$"):
        find("cifar10", tmp_path)
