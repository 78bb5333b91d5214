"""The folder of a run has the network, the normalisation and the images of its weights."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.from_config.teachers import teachers
from experiments.from_config.trained_run import as_trained, evaluation_config, given_keys, other_images, read_run
from kd_local.data import content_digest, load

USUAL = (77.89,), (95.87,)


def config(**changes) -> ConfigDict:
    one = get_config()
    one.update_from_flattened_dict(changes)
    return one


@pytest.fixture
def run(teacher_run, tmp_path):
    """A function that makes the folder of a run with a config and facts."""

    def make(facts=None, **changes):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "network.npz").symlink_to(teacher_run / "network.npz")
        (folder / "config.json").write_text(json.dumps(config(**changes).to_dict()))
        if facts:
            (folder / "identity.json").write_text(json.dumps(facts))
        return folder

    return make


def test_the_normalisation_is_recorded_or_follows_from_the_config(run, teacher_run):
    assert read_run(teacher_run).normalisation == USUAL
    folder = run(**{"data.mean": "0.9", "data.std": "0.1"})
    assert read_run(folder).normalisation == ((229.5,), (25.5,))
    (folder / "identity.json").write_text(json.dumps({"images.mean": [1.0], "images.std": [2.0]}))
    assert read_run(folder).normalisation == ((1.0,), (2.0,))


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '{"network": 3}', '{"network": {"name": 5}}', '{"data": {"name": 2}}']
)
def test_a_damaged_config_is_named(run, text):
    folder = run()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        read_run(folder)


@pytest.mark.parametrize("value", [5, None, ["1"]])
def test_a_damaged_normalisation_is_named(run, value):
    with pytest.raises(ValueError, match=r"identity.json: images.mean is .*: use a list of numbers"):
        read_run(run({"images.mean": value, "images.std": [2.0]}))


def test_an_unknown_normalisation_is_refused(run):
    with pytest.raises(ValueError, match="the normalisation of the images of .* is unknown: unknown dataset 'plants'"):
        read_run(run(**{"data.name": "plants"}))


def test_a_teacher_of_another_normalisation_gets_its_own(run):
    folder = run(**{"data.mean": "0.9", "data.std": "0.1"})
    one = config(method="kd", **{"teacher.weights": str(folder)})
    (teacher,) = teachers(one, classes=10, shape=(8, 8, 1), normalisation=USUAL)
    pixels = np.float32([0.0, 100.0, 255.0]).reshape(3, 1, 1, 1)
    given = teacher.renormalisation(jnp.asarray((pixels - USUAL[0][0]) / USUAL[1][0]))
    np.testing.assert_allclose(given, (pixels - 229.5) / 25.5, rtol=1e-5)
    (teacher,) = teachers(one, classes=10, shape=(8, 8, 1), normalisation=((229.5,), (25.5,)))
    assert teacher.renormalisation is None


def test_an_evaluation_takes_network_and_images_of_the_run(run):
    folder = run(**{"network.name": "resnet14", "data.mean": "0.9", "data.std": "0.1", "data.validation_examples": 9})
    read = read_run(folder)
    merged = evaluation_config(read, config(batch_size=7), ())
    assert (merged.network.name, merged.data.mean, merged.data.validation_examples) == ("resnet14", "0.9", 9)
    assert (merged.batch_size, merged.method) == (7, "contsup")
    given = config(**{"data.name": "cifar10", "network.dtype": "bfloat16"})
    other = evaluation_config(read, given, given_keys(given, ()))
    assert (other.network.name, other.network.dtype) == ("resnet14", "bfloat16")
    assert (other.data.name, other.data.mean, other.data.validation_examples) == ("cifar10", None, 0)
    with pytest.raises(ValueError, match="network.name is 'resnet8', but in the run in .* it is 'resnet14': leave it"):
        evaluation_config(read, config(), given_keys(config(), ["network.name"]))
    assert as_trained(read, load("digits")).augmentation.mean == (229.5,)


def test_images_of_other_classes_are_refused(run):
    read = read_run(run({"images.mean": [1.0], "images.std": [2.0], "images.classes": 100}))
    with pytest.raises(ValueError, match="1 channels and 10 classes, but .* on 1 channels and 100 classes"):
        as_trained(read, load("digits"))


def test_images_that_have_changed_are_said(run):
    digits = load("digits")
    folder = run({"images.mean": [1.0], "images.std": [2.0], "images.content": content_digest(digits)})
    assert other_images(read_run(folder), digits) is None
    fewer = load("digits", train_examples=99)
    assert "digits has other images than in the run in" in str(other_images(read_run(folder), fewer))
    assert other_images(read_run(folder), replace(fewer, name="plants")) is None
