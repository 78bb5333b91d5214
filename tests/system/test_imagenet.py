"""Steps at 224x224 by the ImageNet configs, from a folder of photographs of many sizes."""

import io
import json
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.from_config.weights import save_network
from kd_local.models import create
from tests.support.processes import finish_all, run, start_two, succeed

SIZES = ((300, 224), (224, 260), (500, 375), (90, 120), (640, 480), (224, 224))
CLASSES = 5
NAME = "photographs"


def photograph(number: int) -> bytes:
    """An encoded JPEG with structure of a few pixels."""
    width, height = SIZES[number % len(SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "jpeg")
    return file.getvalue()


def write(folder: Path, train: list[bytes], test: list[bytes]) -> Path:
    """A data set of photographs that tensorflow-datasets prepared for a user."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # a builder leaves a folder behind
        builder = tfds.dataset_builders.AdhocBuilder(
            name=NAME,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            split_datasets={},
            data_dir=folder,
            file_format="array_record",
        )
    builder._split_generators = lambda *_, **__: {
        split: ((i, {"image": io.BytesIO(image), "label": i % CLASSES}) for i, image in enumerate(images))
        for split, images in (("train", train), ("validation", test))
    }
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [photograph(number) for number in range(28)]
    return write(tmp_path_factory.mktemp("prepared"), images[:24], images[24:])


def arguments(file: str, data: Path, workdir: Path, *changes: str) -> list[str]:
    return [
        f"--config=experiments/configs/{file}", f"--workdir={workdir}",
        f"--config.data.name={NAME}", f"--config.data.data_dir={data}", "--config.data.workers=1",
        "--config.batch_size=4", "--config.steps=2", "--config.optimizer.warmup_epochs=0",
        "--config.optimizer.warmup_rate=none", *changes,
    ]  # fmt: skip


def summary(workdir: Path) -> dict:
    found = json.loads((workdir / "summary.json").read_text())
    assert (found["dataset"], found["steps"]) == (NAME, 2)
    assert 0 <= found["test_accuracy"] <= 1 and np.isfinite(found["test_loss"])
    assert 0 < found["data_wait_seconds"] < found["train_seconds"]
    return found


@pytest.mark.exhaustive
def test_contsup_trains_in_two_processes(photographs: Path, tmp_path: Path) -> None:
    changes = ("--config.network.name=resnet18", "--config.mesh.data=2")
    ends = finish_all(
        start_two("train", *arguments("contsup/imagenet.py:network=resnet50,k=2", photographs, tmp_path, *changes))
    )
    assert [status for status, _, _ in ends] == [0, 0], ends
    found = summary(tmp_path)
    assert found["device"].startswith("2 x ")
    assert (found["method"], found["modules"], found["context"], len(found["boundaries"])) == ("contsup", 2, "R1E", 1)


@pytest.mark.exhaustive
def test_a_vision_transformer_trains(photographs: Path, tmp_path: Path) -> None:
    succeed("train", *arguments("contsup/vit.py:network=vit_ti16,k=2", photographs, tmp_path))
    found = summary(tmp_path)
    assert (found["network"], found["modules"], found["context"]) == ("vit_ti16", 2, "R1E")


@pytest.mark.exhaustive
def test_block_kd_trains(photographs: Path, tmp_path: Path) -> None:
    teacher = create("resnet18", classes=CLASSES)
    save_network(teacher.init(jax.random.key(1), jnp.zeros((1, 224, 224, 3))), tmp_path)
    changes = ("--config.teacher.network=resnet18", f"--config.teacher.weights={tmp_path / 'network.npz'}")
    succeed("train", *arguments("blockkd/imagenet.py:pair=resnet34-resnet18", photographs, tmp_path / "run", *changes))
    found = summary(tmp_path / "run")
    assert (found["method"], found["network"]) == ("block_kd", "resnet18")
    assert list(found["exits"]) == ["stone1", "stone2", "stone3", "stone4"]
    assert 0 <= found["teacher_accuracy"] <= 1 and 0 <= found["agreement"] <= 1


@pytest.mark.exhaustive
def test_a_photograph_that_does_not_decode_is_named(tmp_path: Path) -> None:
    images = [photograph(number) for number in range(12)]
    images[5] = images[5][: len(images[5]) // 2]
    (tmp_path / "prepared").mkdir()
    data = write(tmp_path / "prepared", images[:8], images[8:])
    small = ("--config.network.name=resnet8", "--config.data.image_size=32", "--config.steps=4")
    status, _, err = run(
        "train", *arguments("contsup/imagenet.py:network=resnet50,k=2", data, tmp_path / "run", *small)
    )
    assert status == 1
    expected = r"error: record \d of .*array_record.*: its image does not decode: .*: the same command resumes once"
    assert re.search(expected, err), err
