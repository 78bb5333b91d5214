"""The ImageNet configs: what each describes; and steps at 224x224, from a folder of photographs of many sizes."""

import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments.from_config.experiment import build
from experiments.from_config.teachers import save_network
from kd_local.models import create

ROOT = Path(__file__).parents[2]
SIZES = ((300, 224), (224, 260), (500, 375), (90, 120), (640, 480), (224, 224))
CLASSES = 5
NAME = "photographs"


def config_of(file: str, option: str = "") -> ConfigDict:
    return importlib.import_module(f"experiments.configs.{file}").get_config(option)


def options_of(file: str, name: str) -> list[tuple[str, str]]:
    return [(file, option) for option in getattr(importlib.import_module(f"experiments.configs.{file}"), name)]


CUT = [*options_of("contsup.imagenet", "OPTIONS"), *options_of("contsup.vit", "OPTIONS")]
TAUGHT = [*options_of("blockkd.imagenet", "PAIRS"), *options_of("blockkd.vit", "STUDENTS")]
BATCHES = {1024: 1252, 512: 2503}
"""Of an epoch of 1,281,167 images, by the size of a batch."""


def with_values(config: ConfigDict, **values: object) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return changed


@pytest.mark.parametrize(("file", "option"), CUT)
@pytest.mark.parametrize("context", ["R1E", "R0"])
def test_an_option_sets_network_modules_and_context_only(file: str, option: str, context: str) -> None:
    config = config_of(file, option if context == "R1E" else f"{option}_{context}")
    network, k = option.rsplit("_k", 1)
    values = {"network__name": network, "local__modules": int(k), "local__context": context}
    assert config.to_dict() == with_values(config_of(file), **values).to_dict()


@pytest.mark.parametrize(("file", "option"), TAUGHT)
def test_an_option_sets_the_pair_and_its_dkd_weight_only(file: str, option: str) -> None:
    config = config_of(file, option)
    assert f"{config.teacher.network}_{config.network.name}" == option
    values = {
        "network__name": config.network.name,
        "teacher__network": config.teacher.network,
        "dkd__beta": config.dkd.beta,
    }
    assert config.to_dict() == with_values(config_of(file), **values).to_dict()


@pytest.mark.parametrize("file", ["contsup.imagenet", "contsup.vit"])
def test_a_network_that_is_cut(file: str) -> None:
    config = config_of(file)
    experiment = build(config)
    assert (experiment.modules, experiment.shape) == (config.local.modules, (224, 224, 3))
    assert len(experiment.boundaries) == config.local.modules - 1
    steps, rate, warm = BATCHES[config.batch_size], config.optimizer.learning_rate, config.optimizer.warmup_epochs
    assert float(experiment.schedule(warm * steps)) == pytest.approx(rate)
    assert float(experiment.schedule((config.epochs + warm) * steps // 2)) == pytest.approx(rate / 2)
    assert float(experiment.schedule(config.epochs * steps)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("file", ["blockkd.imagenet", "blockkd.vit"])
def test_a_network_that_is_taught(file: str) -> None:
    config = config_of(file)
    experiment = build(config, fresh_teachers=True)
    assert (config.method, experiment.modules, experiment.shape) == ("block_kd", None, (224, 224, 3))
    state = jax.eval_shape(experiment.method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    assert set(state) == {"student", "teacher0"}
    if config.optimizer.schedule == "piecewise":
        epochs = [epoch for milestone in config.optimizer.milestones for epoch in (milestone - 1, milestone)]
        rates = [float(experiment.schedule(epoch * BATCHES[config.batch_size])) for epoch in (0, *epochs)]
        powers = np.repeat(range(len(epochs) // 2 + 1), 2)[: len(rates)]
        np.testing.assert_allclose(rates, config.optimizer.learning_rate * 0.1**powers, rtol=1e-5)


@pytest.mark.parametrize(("file", "option"), [CUT[0], CUT[4], TAUGHT[0], TAUGHT[2]])
def test_without_an_option_it_is_the_first(file: str, option: str) -> None:
    assert config_of(file).to_dict() == config_of(file, option).to_dict()


@pytest.mark.parametrize(
    ("file", "option", "message"),
    [
        ("contsup.imagenet", "resnet50_k3", r"^unknown option 'resnet50_k3': use .*resnet101_k4 \(nearest: resnet50_k"),
        ("contsup.imagenet", "k=2", "^unknown option 'k=2': use resnet50_k2, "),
        ("contsup.vit", "vit_s16", r"^unknown option 'vit_s16': use vit_s16_k4, .* \(nearest: vit_s16_k"),
        ("blockkd.imagenet", "resnet34_resnet8", r"^unknown option .*use .* \(nearest: resnet34_resnet18\)$"),
        ("blockkd.vit", "vit_s16", r"^unknown option 'vit_s16': use resnet50_vit_s16 or resnet50_vit_ti16"),
    ],
)
def test_an_unknown_option_is_refused(file: str, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(file, option)


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unknown context 'R1D': use R0, E, R1, R1E"):
        build(config_of("contsup.imagenet", "resnet50_k4_R1D"))


def photograph(number: int) -> bytes:
    """An encoded JPEG with structure of a few pixels."""
    width, height = SIZES[number % len(SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "jpeg")
    return file.getvalue()


def write(folder: Path, train: list[bytes], test: list[bytes]) -> Path:
    """What a user has whose own photographs tensorflow-datasets prepared."""
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


def command(file: str, data: Path, workdir: Path, *changes: str) -> list[str]:
    return [
        sys.executable, "-m", "experiments.train", f"--config=experiments/configs/{file}", f"--workdir={workdir}",
        f"--config.data.name={NAME}", f"--config.data.data_dir={data}", "--config.data.workers=1",
        "--config.batch_size=4", "--config.steps=2", "--config.optimizer.warmup_epochs=0", *changes,
    ]  # fmt: skip


def train(file: str, data: Path, workdir: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    line = command(file, data, workdir, *changes)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)


def train_in_two_processes(file: str, data: Path, workdir: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    """What the first process says and how it ends; the second one must end well."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": re.sub(r"\S*device_count=\d+", "", os.environ["XLA_FLAGS"])}
    shared = ("--config.mesh.data=2", "--distributed", f"--coordinator=localhost:{port}", "--processes=2")
    first, second = (
        subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in (command(file, data, workdir, *shared, f"--index={index}", *changes) for index in range(2))
    )
    try:
        out, error = first.communicate(timeout=400)
        _, error_of_second = second.communicate(timeout=60)
    finally:
        first.kill()
        second.kill()
    assert second.returncode == 0, error_of_second
    return subprocess.CompletedProcess(first.args, first.returncode, out, error)


def summary(done: subprocess.CompletedProcess[str], workdir: Path) -> dict:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads((workdir / "summary.json").read_text())
    assert (found["dataset"], found["steps"]) == (NAME, 2)
    assert 0 <= found["test_accuracy"] <= 1 and np.isfinite(found["test_loss"])
    assert 0 < found["data_wait_seconds"] < found["train_seconds"]
    return found


@pytest.mark.exhaustive
def test_contsup_trains_in_two_processes(photographs: Path, tmp_path: Path) -> None:
    small = "--config.network.name=resnet18"
    found = summary(train_in_two_processes("contsup/imagenet.py:resnet50_k2", photographs, tmp_path, small), tmp_path)
    assert found["device"].startswith("2 x ")
    assert (found["method"], found["modules"], found["context"], len(found["boundaries"])) == ("contsup", 2, "R1E", 1)


@pytest.mark.exhaustive
def test_a_vision_transformer_trains(photographs: Path, tmp_path: Path) -> None:
    found = summary(train("contsup/vit.py:vit_ti16_k2", photographs, tmp_path), tmp_path)
    assert (found["network"], found["modules"], found["context"]) == ("vit_ti16", 2, "R1E")


@pytest.mark.exhaustive
def test_block_kd_trains(photographs: Path, tmp_path: Path) -> None:
    teacher = create("resnet18", classes=CLASSES)
    save_network(teacher.init(jax.random.key(1), jnp.zeros((1, 224, 224, 3))), tmp_path)
    done = train(
        "blockkd/imagenet.py:resnet34_resnet18", photographs, tmp_path / "run",
        "--config.teacher.network=resnet18", f"--config.teacher.weights={tmp_path / 'network.npz'}",
    )  # fmt: skip
    found = summary(done, tmp_path / "run")
    assert (found["method"], found["network"]) == ("block_kd", "resnet18")
    assert list(found["exits"]) == ["stone1", "stone2", "stone3", "stone4"]
    assert 0 <= found["teacher_accuracy"] <= 1 and 0 <= found["agreement"] <= 1


def test_a_folder_without_the_data_is_named(tmp_path: Path) -> None:
    done = train("contsup/vit.py", tmp_path / "nowhere", tmp_path / "run", "--config.data.name=imagenet2012")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no prepared imagenet2012 in {tmp_path / 'nowhere' / 'imagenet2012'}: give")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.exhaustive
def test_a_photograph_that_does_not_decode_is_named(tmp_path: Path) -> None:
    images = [photograph(number) for number in range(12)]
    images[5] = images[5][: len(images[5]) // 2]
    (tmp_path / "prepared").mkdir()
    data = write(tmp_path / "prepared", images[:8], images[8:])
    small = ("--config.network.name=resnet8", "--config.data.image_size=32", "--config.steps=4")
    done = train("contsup/imagenet.py:resnet50_k2", data, tmp_path / "run", *small)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    expected = r"error: record \d of .*array_record.*: its image does not decode: .*: the same command resumes once"
    assert re.search(expected, done.stderr), done.stderr
