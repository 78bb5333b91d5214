"""The folder of a run has the network, the normalisation and the images of its weights."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.folders.identity import options
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
    ("text", "found"),
    [
        ("[]", "a JSON list in place of an object"),
        ("null", "a JSON null in place of an object"),
        ("5", "a JSON number in place of an object"),
        ('{"network": 3}', "network is no group of keys"),
        ('{"network": {"name": 5}}', "network.name is 5"),
        ('{"data": {"name": 2}}', "data.name is 2"),
        ('{"method": []}', r"method is \[\]"),
    ],
)
def test_a_damaged_config_is_named(run, text, found):
    folder = run()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config.json' is damaged \({found}\): restore it, or use another folder$"):
        read_run(folder)


def test_a_folder_of_no_run_is_refused(tmp_path):
    """The message names no key: a teacher, an evaluation and a start have different ones."""
    with pytest.raises(
        ValueError, match="is not the folder of a run, .*: give the folder of a run, or a file of weights$"
    ):
        read_run(tmp_path)


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


def test_a_teacher_from_a_file_gets_the_given_normalisation_or_a_note(run, teacher_run, tmp_path, capsys):
    path = tmp_path / "weights.npz"
    path.write_bytes((teacher_run / "network.npz").read_bytes())
    known = {"classes": 10, "shape": (8, 8, 1), "normalisation": USUAL}
    file = {"method": "kd", "teacher.weights": str(path), "teacher.network": "resnet8"}
    (teacher,) = teachers(config(**file), **known)
    assert teacher.renormalisation is None
    err = capsys.readouterr().err
    assert "weights.npz does not record the normalisation of its images: the student's is used, mean 0.3055" in err
    assert "--config.teacher.mean and --config.teacher.std set others" in err
    own = {"teacher.mean": "0.9", "teacher.std": "0.1"}
    (teacher,) = teachers(config(**file, **own), **known)
    assert (teacher.renormalisation.shift[0], capsys.readouterr().err) == (pytest.approx((77.89 - 229.5) / 25.5), "")
    for key, value, message in (
        ("teacher.mean", "0.5,0.5", r"teacher.mean is '0.5,0.5': use a number in \[0, 1\] for each of the 1 channels"),
        ("teacher.std", "0", r"teacher.std is '0': use a number in \[0.001, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            teachers(config(**file, **{key: value}), **known)
    inside = config(**{**file, "teacher.weights": str(teacher_run / "network.npz")})
    teachers(inside, **known)
    assert f"{teacher_run} records it: give the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher.shortcut", "padding", "teacher.shortcut is padding, but in the run in .* it is projection: leave it"),
        ("teacher.mean", "0.5", "teacher.mean is 0.5, which is for weights from a file, and .* records its own: leave"),
        ("teacher.std", "0.5", "teacher.std is 0.5, which is for weights from a file"),
    ],
)
def test_a_key_that_contradicts_the_records_of_a_teacher_is_refused(run, key, value, message):
    one = config(method="kd", **{"teacher.weights": str(run()), key: value})
    with pytest.raises(ValueError, match=message):
        teachers(one, classes=10, shape=(8, 8, 1), normalisation=USUAL)


def test_the_default_shortcut_of_earlier_versions_is_that_of_now():
    assert options(config(method="kd", **{"teacher.shortcut": "projection"})) == options(config(method="kd"))


def test_processes_that_decode_are_those_of_the_present_machine(run):
    assert read_run(run(**{"data.workers": 3})).config.data.workers is None


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
