"""The number of examples comes from the prepared data, if there are any."""

from pathlib import Path
from typing import Any

import pytest

from experiments.configs.default import get_config
from experiments.from_config.experiment import build
from kd_local.data import describe, load
from kd_local.distill import Distillation

SHAPE = (32, 32, 3)


def test_a_known_data_set_has_the_numbers_of_its_folder(prepare: Any, examples: Any) -> None:
    data_dir = prepare("cifar10", train=examples(40, SHAPE, 10), test=examples(20, SHAPE, 10))
    spec, data = describe("cifar10", data_dir=data_dir), load("cifar10", data_dir=data_dir)
    assert (spec.train, spec.test) == (len(data.train), len(data.test)) == (40, 20)
    assert describe("cifar10", data_dir=data_dir, validation_examples=8).train == 32
    with pytest.raises(ValueError, match="train_examples 41 of 40 training examples"):
        describe("cifar10", data_dir=data_dir, train_examples=41)


def test_a_data_set_that_is_not_prepared_has_its_published_numbers(tmp_path: Path) -> None:
    spec = describe("cifar10", data_dir=tmp_path)
    assert (spec.train, spec.test) == (50_000, 10_000)


def test_classes_of_another_number_are_refused_before_images_are_read(
    prepare: Any, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    described = {"image": features.Image(shape=SHAPE), "label": features.ClassLabel(num_classes=5)}
    splits = {"train": examples(10, SHAPE, 5), "test": examples(5, SHAPE, 5)}
    data_dir = prepare("cifar10", features=described, **splits)
    with pytest.raises(ValueError, match="5 classes, but cifar10 has images of shape .* and 10 classes"):
        describe("cifar10", data_dir=data_dir)


def test_schedules_and_memory_banks_use_the_number_of_images_found(prepare: Any, examples: Any) -> None:
    config = get_config()
    config.method, config.batch_size, config.epochs = "kd", 50, 6
    config.data.name = "cifar10"
    config.data.data_dir = str(prepare("cifar10", train=examples(200, SHAPE, 10), test=examples(20, SHAPE, 10)))
    config.optimizer.schedule, config.optimizer.warmup_epochs = "cosine", 0
    config.teacher.network = "resnet8"
    experiment = build(config, fresh_teachers=True)
    rates = [float(experiment.schedule(4 * epoch - 1)) for epoch in range(1, 7)]
    assert rates == pytest.approx([0.0962, 0.0804, 0.0565, 0.0309, 0.0103, 0.0004], abs=5e-5)
    assert isinstance(experiment.method, Distillation) and experiment.method.examples == 200
    config.optimizer.accumulate = 5
    with pytest.raises(ValueError, match="accumulate is 5 for 4 batches"):
        build(config, fresh_teachers=True)
