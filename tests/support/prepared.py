"""Small data sets in the format of the real ones: fixtures, which the conftest.py of a folder imports."""

import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Example = tuple[np.ndarray | bytes, int]
Prepare = Callable[..., Path]


def _encoded(image: np.ndarray | bytes) -> io.BytesIO:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def _write(
    root: Path,
    name: str,
    *,
    shards: int = 1,
    features: dict[str, Any] | None = None,
    keys: tuple[str, str] = ("image", "label"),
    **splits: list[Any],
) -> Path:
    tfds = pytest.importorskip("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(root))  # a builder leaves a folder behind
        if features is None:
            builder = tfds.builder(name, data_dir=root, file_format="array_record")
        else:
            builder = tfds.dataset_builders.AdhocBuilder(
                name=name,
                version="1.0.0",
                features=tfds.features.FeaturesDict(features),
                split_datasets={},
                data_dir=root,
                file_format="array_record",
            )
    given = set(builder.info.features)

    def generate(split: str, examples: list[Example]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(examples):
            encoded = type(builder.info.features[keys[0]]).__name__ == "Image"
            example = {keys[0]: _encoded(image) if encoded else image, keys[1]: label}
            if "id" in given:
                example["id"] = f"{split}_{index}"
            if "file_name" in given:
                example["file_name"] = f"{split}_{index}.JPEG"
            if "coarse_label" in given:
                # Never the label itself, so that one taken for the other is seen.
                example["coarse_label"] = (label + 1) % 20
            if "depth" in given:
                example["depth"] = _encoded(np.zeros((8, 8, 1), np.uint16))
            yield index, example

    builder._split_generators = lambda *_, **__: {
        split: generate(split, examples) for split, examples in splits.items()
    }
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
    builder.download_and_prepare(download_config=config)
    return root


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Writes examples, an image or encoded bytes with a label, as `download_and_prepare` would.

    A data set that tensorflow-datasets does not know has its features given; `keys` name those of the examples.
    """
    return partial(_write, tmp_path)


@pytest.fixture(scope="module")
def prepare_once(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """The same, for all tests of a file."""
    return partial(_write, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def examples() -> Callable[..., list[Example]]:
    """Noise of a shape with the labels 0, 1, ... in turn; the first pixel tells which it is."""

    def make(count: int, shape: tuple[int, ...], classes: int) -> list[Example]:
        images = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        return [(image, index % classes) for index, image in enumerate(images)]

    return make


@pytest.fixture(scope="session")
def photograph() -> Callable[..., bytes]:
    """An encoded image with structure of a few pixels: of no two seeds the same."""

    def make(width: int, height: int, *, seed: int = 0, mode: str = "RGB", kind: str = "jpeg") -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        file = io.BytesIO()
        image.save(file, kind, **({"quality": 90} if kind == "jpeg" else {}))
        return file.getvalue()

    return make
