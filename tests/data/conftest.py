"""Small data sets in the format of the real ones."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Example = tuple[np.ndarray | bytes, int]
Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Writes examples, an image or encoded bytes with a label, as `download_and_prepare` would."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pillow = pytest.importorskip("PIL.Image")

    def encoded(image: np.ndarray | bytes) -> io.BytesIO:
        if isinstance(image, bytes):
            return io.BytesIO(image)
        file = io.BytesIO()
        pillow.fromarray(image).save(file, "png")
        file.seek(0)
        return file

    def write(name: str, *, shards: int = 1, **splits: list[Example]) -> Path:
        builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
        features = set(builder.info.features)

        def generate(split: str, examples: list[Example]) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(examples):
                example = {"image": encoded(image), "label": label}
                if "id" in features:
                    example["id"] = f"{split}_{index}"
                if "coarse_label" in features:
                    # Never the label itself, so that one taken for the other is seen.
                    example["coarse_label"] = (label + 1) % 20
                yield index, example

        builder._split_generators = lambda *_, **__: {
            split: generate(split, examples) for split, examples in splits.items()
        }
        tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
        builder.download_and_prepare(download_config=config)
        return tmp_path

    return write


@pytest.fixture
def examples() -> Callable[..., list[Example]]:
    """Noise of a shape with the labels 0, 1, ... in turn; the first pixel tells which it is."""

    def make(count: int, shape: tuple[int, ...], classes: int) -> list[Example]:
        images = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        return [(image, index % classes) for index, image in enumerate(images)]

    return make
