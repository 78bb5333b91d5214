"""Data sets prepared by tensorflow-datasets, read without tensorflow.

The data must be on a local disk in the array_record format. Nothing is downloaded or converted.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from kd_local.choices.data import FORMAT, folder_of, how_to_prepare, missing, versions
from kd_local.data.features import USUAL_KEYS, FeatureKeys, image_feature, is_encoded, label_feature, pixels_of
from kd_local.files import read_json

_CHUNK = 1000
_PACKAGES = {"tensorflow_datasets": "tensorflow-datasets", "array_record": "array_record"}


class DataError(ValueError):
    """Examples cannot be read or decoded, or a process that reads them ended."""


def _tfds() -> Any:
    missing = [package for module, package in _PACKAGES.items() if not _installed(module)]
    if missing:
        raise ModuleNotFoundError(
            f"reading prepared data needs {' and '.join(missing)} (not tensorflow): pip install {' '.join(missing)}"
        )
    return importlib.import_module("tensorflow_datasets")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder of the newest prepared version of a data set, such as `data_dir/cifar10/3.0.2`.

    The default of `data_dir` is the folder of tensorflow-datasets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
        FileNotFoundError: the data set is not prepared there.
        ValueError: it is prepared in a format without random access.
        ModuleNotFoundError: tensorflow-datasets or array_record is not installed.
    """
    _tfds()
    found = versions(folder_of(name, data_dir))
    if not found:
        raise missing(name, data_dir)
    folder = max(found, key=lambda path: tuple(map(int, path.name.split("."))))
    command = how_to_prepare(name, folder_of("", data_dir))
    way_out = f"remove {folder} and {command}"
    info = read_json(folder / "dataset_info.json", {"fileFormat": str}, way_out=way_out)
    formats = [info["fileFormat"], *(info.get("alternativeFileFormats") or [])]
    if FORMAT not in formats:
        raise ValueError(
            f"{folder} is prepared as {formats[0]}, which has no random access without "
            f"tensorflow: use another data_dir, or remove {folder} and {command}"
        )
    return folder


@dataclass(frozen=True)
class Contents:
    """The metadata of a prepared data set.

    Attributes:
        shape: height, width and channels of the images; None for a side that differs between images.
        classes: number of classes; labels are from 0 to `classes - 1`.
        examples: number of examples of each split.
        encoded: True if the images are encoded. Otherwise they are arrays, which can only be held in memory.
    """

    shape: tuple[int | None, ...]
    classes: int
    examples: Mapping[str, int]
    encoded: bool = True


def contents(folder: Path, keys: FeatureKeys = USUAL_KEYS) -> Contents:
    """The metadata of a folder that `find` returned; no example is read.

    Raises:
        ValueError: the metadata cannot be read, or do not describe labelled images of 8 or 16 bits.
    """
    return _open(folder, keys)[1]


def _open(folder: Path, keys: FeatureKeys) -> tuple[Any, Contents]:
    """The builder and the metadata."""
    tfds = _tfds()
    try:
        builder = tfds.builder_from_directory(folder, file_format=FORMAT)
        features = dict(sorted(builder.info.features.items()))
        examples = {name: split.num_examples for name, split in builder.info.splits.items()}
    except Exception as error:
        raise ValueError(
            f"{folder} is not a prepared set of labelled images ({error!r}): use another data set or, if it should be "
            "one, remove it and prepare it again"
        ) from error
    try:
        image, label = image_feature(features, keys.image), label_feature(features, keys.label)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return builder, Contents(tuple(image.shape), label.num_classes, examples, is_encoded(image))


def not_streamed(key: str) -> str:
    """The reason why images that are arrays are not streamed."""
    return f"its feature {key!r} is a Tensor, which cannot be streamed: prepare the set with an Image"


class PreparedSplit:
    """One split of a prepared data set, with random access.

    Args:
        folder: a folder that `find` returned.
        split: name of the split, such as `train`.
        keys: names of the features that hold images and labels.

    Attributes:
        shape: height, width and channels of the images; None for a side that differs between images.
        classes: number of classes; labels are from 0 to `classes - 1`.

    Raises:
        FileNotFoundError: a file of the split is missing.
        ValueError: the folder has no such split or features, or its metadata cannot be read.
    """

    shape: tuple[int | None, ...]
    classes: int

    def __init__(self, folder: Path, split: str, keys: FeatureKeys = USUAL_KEYS) -> None:
        builder, held = _open(folder, keys)
        self.shape, self.classes = held.shape, held.classes
        self._origin = folder, split, keys
        if split not in held.examples:
            raise ValueError(f"{folder} has no split {split!r}: use {', '.join(held.examples)}")
        self._keys, self._image = keys, builder.info.features[keys.image]
        info = builder.info.splits[split]
        self._files = [Path(path) for path in info.filepaths]
        self._ends = np.cumsum(info.shard_lengths)
        for file in self._files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: copy it there, or remove {folder} and prepare it again")
        skip = _tfds().decode.SkipDecoding()
        undecoded = [
            name for name, feature in builder.info.features.items() if name == keys.image or is_encoded(feature)
        ]
        self._records = builder.as_data_source(split, decoders=dict.fromkeys(undecoded, skip), file_format=FORMAT)
        self._labels: Int32[np.ndarray, " n"] | None = None

    def __reduce__(self) -> tuple[type["PreparedSplit"], tuple[Path, str, FeatureKeys]]:
        # A process that unpickles this object opens the files again.
        return PreparedSplit, self._origin

    def __len__(self) -> int:
        return len(self._records)

    def labels(self) -> Int32[np.ndarray, " n"]:
        """All labels. They are read at the first call; no image is decoded.

        Raises:
            ValueError: a record cannot be read; the message names it.
        """
        if self._labels is None:
            labels = np.empty(len(self), np.int32)
            for index, record in self._read(range(len(self))):
                labels[index] = self._label(index, record)
            self._labels = labels
        return self._labels

    def encoded(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes, int]]:
        """Yields `(index, encoded image, label)` for each of `indices`, in this order.

        Raises:
            ValueError: the images are not encoded, or a record cannot be read, which the message names.
        """
        if not is_encoded(self._image):
            raise ValueError(f"{self._origin[0]}: {not_streamed(self._keys.image)}")
        for index, record in self._read(indices):
            yield index, record[self._keys.image], self._label(index, record)

    def examples(
        self, indices: Integer[np.ndarray, " n"] | None = None
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
        """Images and labels of the examples `indices`, by default all, in this order. All images must have one shape.

        Raises:
            ValueError: a record cannot be read or decoded, which the message names, or the shapes differ.
        """
        shape = tuple(side for side in self.shape if side is not None)
        if len(shape) < len(self.shape):
            raise ValueError(
                f"the images in {self._origin[0]} differ in shape ({self.shape}): read them with a StreamedSplit"
            )
        wanted = list(range(len(self))) if indices is None else indices.tolist()
        images = np.empty((len(wanted), *shape), np.uint8)
        labels = np.empty(len(wanted), np.int32)
        for place, (index, record) in enumerate(self._read(wanted)):
            labels[place] = self._label(index, record)
            images[place] = self._decode(index, record)
        return images, labels

    def _label(self, index: int, record: Any) -> int:
        label = int(record[self._keys.label])
        if not 0 <= label < self.classes:
            raise self.damaged(index, f"its label is {label}, not 0 to {self.classes - 1}")
        return label

    def _decode(self, index: int, record: Any) -> np.ndarray:
        try:
            image = pixels_of(self._image, record[self._keys.image])
        except Exception as error:
            raise self.damaged(index, f"its image does not decode: {error}") from error
        if image.shape != self.shape:
            raise self.damaged(index, f"its image is {image.shape}, not {self.shape}")
        return image

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for start in range(0, len(indices), _CHUNK):
            chunk = list(indices[start : start + _CHUNK])
            try:
                records = self._records.__getitems__(chunk)
            except Exception:
                # Read one by one to find the damaged record.
                records = [self._read_one(index) for index in chunk]
            yield from zip(chunk, records, strict=True)

    def _read_one(self, index: int) -> Any:
        try:
            return self._records[index]
        except Exception as error:
            raise self.damaged(index, f"it cannot be read: {error}") from error

    def damaged(self, index: int, reason: str) -> DataError:
        """The error for a damaged record, with its file and the reason. The caller raises it."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        record = index - (int(self._ends[shard - 1]) if shard else 0)
        return DataError(
            f"record {record} of {self._files[shard]}: {reason}. Copy this file again, or remove "
            "its folder and prepare the data set again"
        )
