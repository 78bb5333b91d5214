"""A network starts with the weights of a file or of a run; what does not fit is refused or starts new."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.configs.default import get_config
from experiments.folders.identity import options
from experiments.folders.workdirs import CONFIG
from experiments.from_config.deployed_runs import save_state
from experiments.from_config.experiment import build
from experiments.from_config.facts import facts_of_files
from kd_local.distill import KD, Distillation, Teacher
from kd_local.interop import network_to_torch
from kd_local.models import create
from kd_local.state import variables_of
from tests.support import tiny

SHAPE = (8, 8, 1)
IMAGES = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)


def config_of(weights, **changes):
    config = get_config()
    config.network.name, config.network.weights = "resnet8", str(weights)
    config.local.modules = 2
    config.update(changes)
    return config


def file_of(folder, classes):
    network = create("resnet8", classes=classes)
    variables = tiny.variables(network, 7, SHAPE)
    path = folder / f"weights{classes}.npz"
    np.savez(path, **network_to_torch(network, variables))
    return path, variables


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, dict(ours), dict(theirs))


@pytest.mark.exhaustive
def test_every_kind_of_method_starts_with_the_weights_of_a_file(tmp_path):
    path, variables = file_of(tmp_path, 10)
    whole = build(config_of(path, method="end_to_end"))
    state = whole.method.init(jax.random.key(0), IMAGES)
    equal(whole.method.network_variables(state), variables)
    cut = build(config_of(path, method="contsup")).method.init(jax.random.key(0), IMAGES)
    blocks = cut["module00"]["params"]["blocks"]
    equal(blocks["0"], variables["params"]["stem"])
    assert "head" in cut["module00"]["params"]
    method = Distillation(whole.network, (Teacher(create("resnet8", classes=10), variables),), KD(), optax.sgd(0.1))
    equal(method.network_variables(method.init(jax.random.key(0), IMAGES)), variables)


def test_the_last_layer_starts_new_for_another_number_of_classes(tmp_path, capsys):
    path, variables = file_of(tmp_path, 3)
    experiment = build(config_of(path, method="end_to_end"))
    assert "has 3 classes, the data have 10: the last layer starts new" in capsys.readouterr().err
    found = experiment.network.init(jax.random.key(0), IMAGES)["params"]
    equal(found["stage3/0"], variables["params"]["stage3/0"])
    assert found["head"]["linear"]["dense"]["bias"].shape == (10,)


def test_a_network_starts_with_the_blocks_of_a_run_of_contsup(tmp_path):
    config = config_of("", method="contsup")
    config.network.weights = None
    (tmp_path / CONFIG).write_text(json.dumps(config.to_dict()))
    method = build(config).method
    state = {name: variables_of(part) for name, part in method.init(jax.random.key(3), IMAGES).items()}
    save_state(method, state, SHAPE, tmp_path)
    found = build(config_of(tmp_path, method="end_to_end")).network.init(jax.random.key(0), IMAGES)
    equal(found["params"]["stem"], state["module00"]["params"]["blocks"]["0"])
    with pytest.raises(ValueError, match="is a run with network.name=resnet8, and this one has resnet14: use the same"):
        build(config_of(tmp_path, network={"name": "resnet14"}))


def test_weights_that_are_missing_or_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match="network.weights '.*none.npz': there is no such file or folder"):
        build(config_of(tmp_path / "none.npz"))
    path, _ = file_of(tmp_path, 10)
    with pytest.raises(ValueError, match=r"weights10.npz: layer1.1.conv1.weight is missing"):
        build(config_of(path, network={"name": "resnet14"}))


def test_variables_in_the_path_are_expanded(tmp_path, monkeypatch):
    path, _ = file_of(tmp_path, 10)
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    config = config_of(f"$WEIGHTS_FOLDER/{path.name}")
    build(config)
    assert facts_of_files(config)["start.file"] == facts_of_files(config_of(path))["start.file"]


def test_a_run_is_bound_to_the_content_of_its_start_weights_not_to_their_path(tmp_path):
    path, _ = file_of(tmp_path, 10)
    moved = tmp_path / "moved.npz"
    moved.write_bytes(path.read_bytes())
    assert options(config_of(path)) == options(config_of(moved)) != options(get_config())
    assert facts_of_files(config_of(path))["start.file"] == facts_of_files(config_of(moved))["start.file"]
