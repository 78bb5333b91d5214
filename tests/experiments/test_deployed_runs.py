"""The folder of a run of any method is evaluated, and teaches, with the logits that the run had."""

import json

import jax
import numpy as np
import optax
import pytest

from experiments.configs.default import get_config
from experiments.folders.workdirs import CONFIG
from experiments.from_config.deployed_runs import STATE, load_state, save_state
from experiments.from_config.experiment import build
from experiments.from_config.teachers import teachers
from experiments.from_config.trained_run import read_run
from experiments.from_config.weights import weights_file
from kd_local.distill import KD, OBJECTIVES, Distillation, Teacher
from kd_local.distill.deployed import deployed_network
from kd_local.models import create
from kd_local.state import variables_of
from tests.support import tiny

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def contsup(tmp_path_factory):
    """The folder of a run of ContSup with fresh weights, its method and its state."""
    folder = tmp_path_factory.mktemp("contsup")
    config = get_config()
    config.network.name, config.local.modules, config.local.context = "resnet8", 2, "R1"
    (folder / CONFIG).write_text(json.dumps(config.to_dict()))
    method = build(config).method
    state = {
        name: variables_of(part) for name, part in method.init(jax.random.key(3), tiny.batch(2, shape=SHAPE)[0]).items()
    }
    save_state(method, state, SHAPE, folder)
    return folder, method, state


@pytest.mark.exhaustive
def test_the_state_of_a_run_gives_its_logits_and_exits(contsup):
    folder, method, state = contsup
    images = tiny.batch(2, shape=SHAPE)[0]
    loaded, found = load_state(read_run(folder), None)
    np.testing.assert_array_equal(loaded.logits(found, images), method.logits(state, images))
    assert list(loaded.exits(found, images)) == ["module00", "module01", "ensemble"]


@pytest.mark.long
def test_a_run_of_contsup_teaches_by_its_logits(contsup):
    folder, method, state = contsup
    assert weights_file(folder) == folder / STATE
    config = get_config()
    config.method, config.teacher.weights = "kd", str(folder)
    normalisation = read_run(folder).normalisation
    (teacher,) = teachers(config, classes=10, shape=SHAPE, normalisation=normalisation)
    student = create("resnet8", classes=10)
    images = tiny.batch(2, shape=SHAPE)[0]
    distillation = Distillation(student, (teacher,), KD(), optax.sgd(0.1))
    logits = distillation.teacher_logits({"teacher0": teacher.variables}, images)["teacher0"]
    np.testing.assert_array_equal(logits, method.logits(state, images))
    assert "0x" not in repr(teacher.network)
    with pytest.raises(ValueError, match=r"needs maps between the blocks .* 'deployed/0' \(DeployedMethod\)"):
        Distillation(student, (teacher,), OBJECTIVES["at"](), optax.sgd(0.1))


def test_the_deployed_network_of_simkd_is_a_network():
    one, image = create("resnet8", classes=10), jax.ShapeDtypeStruct((2, *SHAPE), np.float32)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(one.init, jax.random.key(0), image))
    method = Distillation(one, (Teacher(one, variables),), OBJECTIVES["simkd"](), optax.sgd(0.1))
    network = deployed_network(method)
    found = jax.eval_shape(network.init, jax.random.key(0), image)
    assert jax.eval_shape(lambda v, x: network.apply(v, x, train=False)[0], found, image).shape == (2, 10)


@pytest.mark.exhaustive
def test_a_run_of_simkd_teaches_by_its_logits(teacher_run, tmp_path):
    config = get_config()
    config.method, config.network.name, config.teacher.weights = "simkd", "resnet8", str(teacher_run)
    (tmp_path / CONFIG).write_text(json.dumps(config.to_dict()))
    method = build(config).method
    images = tiny.batch(2, shape=SHAPE)[0]
    state = {name: variables_of(part) for name, part in method.init(jax.random.key(3), images).items()}
    save_state(method, state, SHAPE, tmp_path)
    config.method, config.teacher.weights = "kd", str(tmp_path)
    (teacher,) = teachers(config, classes=10, shape=SHAPE, normalisation=read_run(tmp_path).normalisation)
    logits = teacher.network.apply(teacher.variables, images, train=False)[0]
    np.testing.assert_allclose(logits, method.logits(state, images), rtol=1e-5, atol=1e-5)


def test_a_plain_network_without_exits_has_no_second_file(tmp_path):
    config = get_config()
    config.method, config.network.name = "end_to_end", "resnet8"
    method = build(config).method
    state = {"network": variables_of(method.init(jax.random.key(0), tiny.batch(2, shape=SHAPE)[0])["network"])}
    save_state(method, state, SHAPE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_damaged_is_refused(contsup, tmp_path):
    (tmp_path / CONFIG).write_bytes((contsup[0] / CONFIG).read_bytes())
    (tmp_path / STATE).write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=f"the network of {tmp_path} cannot be built"):
        load_state(read_run(tmp_path), None)


def test_a_state_that_is_not_finite_is_refused(contsup, tmp_path):
    folder, method, state = contsup
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    poisoned = jax.tree.map(lambda x: np.full_like(x, np.nan), state)
    save_state(method, poisoned, SHAPE, tmp_path)
    with pytest.raises(ValueError, match="method.npz"):
        load_state(read_run(tmp_path), None)
