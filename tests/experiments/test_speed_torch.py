"""The steps in PyTorch compute what the reference code and the package compute, in float64.

The authors' numbers are read from the folder KD_LOCAL_GOLDEN, as in test_golden_contsup.py.
"""

import contextlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.interop import to_torch
from kd_local.local import cut
from kd_local.models import resnet
from kd_local.parallel import compile_step
from tests.support.weights import weights_by_name

torch = pytest.importorskip("torch")

from experiments.speed.torch_network import CutResNet  # noqa: E402
from experiments.speed.torch_step import distillation_loss, greedy_backward, whole_loss  # noqa: E402

HERE = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("KD_LOCAL_GOLDEN", Path(__file__).parents[2] / "../shared/golden"))
CONTSUP = {name: FOLDER / f"contsup_resnet32_{name}_softmax_cifar10.npz" for name in ("k16_R0", "k8_R1E")}
EXACT = 1e-7


def golden(path):
    if not path.exists():
        pytest.skip(f"{path.name} is not in {path.parent}")
    return np.load(path)


def in_torch(cut_network, weights, classes=10):
    """The network in float64 with these weights. Only counters of batches may be missing."""
    network = CutResNet(cut_network, classes, 3).double()
    weights = {name: torch.tensor(np.array(array)) for name, array in weights.items()}
    missing = network.load_state_dict(weights, strict=False).missing_keys
    assert not [name for name in missing if "num_batches" not in name]
    return network


def greedy(network, images, labels):
    modules = [lambda *given, i=i: network.module_loss(i, *given) for i in range(len(network.modules_of))]
    images = torch.tensor(np.asarray(images, np.float64).transpose(0, 3, 1, 2))
    losses = greedy_backward(network, modules, images, torch.tensor(labels), contextlib.nullcontext())
    return np.array([loss.item() for loss in losses])


def close(ours, theirs, zero=1e-10):
    scale = max(np.abs(theirs).max(), zero / EXACT)
    return np.abs(np.asarray(ours) - theirs).max() <= EXACT * scale


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CONTSUP)
def test_greedy_local_learning_of_the_authors(name):
    """Losses, gradients and statistics after a step."""
    file = golden(CONTSUP[name])
    modules, context = name.removeprefix("k").split("_")
    cut_network = cut(resnet(32, classes=10), int(modules), classes=10, context=context)
    state = {key.removeprefix("state/"): file[key] for key in file.files if key.startswith("state/")}
    network = in_torch(cut_network, state)
    images = (file["x"] - np.array([125.3, 123.0, 113.9])) / np.array([63.0, 62.1, 66.7])
    assert close(greedy(network, images, file["y"]), file["float64/module_losses"])
    parameters, statistics = dict(network.named_parameters()), dict(network.named_buffers())
    checked = 0
    for key in file.files:
        kind, _, parameter = key.removeprefix("float64/").partition("/")
        if key.startswith("float64/grad"):
            found = parameters[parameter].grad.numpy()
            assert close(np.linalg.norm(found) if kind == "gradnorm" else found.ravel()[:16], file[key]), key
            checked += 1
        # The authors' code always builds decoders and encoders.
        if key.startswith("float64/after/") and parameter in statistics:
            assert close(statistics[parameter].numpy(), file[key]), key
    assert checked > 200
    with torch.no_grad():
        logits = network.eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert logits.shape == file["float64/eval_logits"].shape


@pytest.mark.parametrize("depth", [8, 20])
def test_networks_of_mdistiller(depth):
    file = np.load(HERE / f"mdistiller_resnet{depth}.npz")
    state = zip(file["state_names"].tolist(), map(json.loads, file["state_shapes"].tolist()), strict=True)
    whole = cut(resnet(depth, classes=100), 1, classes=100)
    network = in_torch(whole, weights_by_name({name: tuple(shape) for name, shape in state}), classes=100)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    images = torch.tensor(images.transpose(0, 3, 1, 2)).double()
    with torch.no_grad():
        evaluated = network.eval()(images)
        trained = network.train()(images)
    assert close(evaluated.numpy(), file["float64/eval_logits"])
    assert close(trained.numpy(), file["float64/train_logits"])


def test_the_loss_of_kd_of_mdistiller():
    file = golden(FOLDER / "mdistiller_losses.npz")
    student = torch.tensor(file["student_logits"]).double().requires_grad_()
    loss = distillation_loss(student, torch.tensor(file["teacher_logits"]).double())
    loss.backward()
    np.testing.assert_allclose(loss.item(), file["loss/kd_T4"], rtol=1e-5)  # which is of float32
    np.testing.assert_allclose(student.grad.norm().item(), file["gradnorm/kd_T4"], rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("context", ["R0", "E", "R1", "R1E"])
def test_greedy_local_learning_of_the_package(context):
    cut_network = cut(resnet(8, classes=10), 4, classes=10, context=context)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 16, 16, 3)), rng.integers(10, size=4)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        variables = cut_network.init(jax.random.key(0), images.astype(np.float32))
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)

        def objective(params):
            parts = {name: {**part, "params": params[name]} for name, part in variables.items()}
            losses = cut_network.losses(parts, images, labels.astype(np.int32), train=True).losses
            return sum(losses.values()), losses

        params = {name: part["params"] for name, part in variables.items()}
        gradients, losses = jax.jit(jax.grad(objective, has_aux=True))(params)
        of_parts = {name: {**part, "params": gradients[name]} for name, part in variables.items()}
        expected, weights = to_torch(cut_network, of_parts), to_torch(cut_network, variables)
    network = in_torch(cut_network, weights)
    found = greedy(network, images, labels)
    np.testing.assert_allclose(found, [losses[module.name] for module in cut_network.modules], rtol=1e-10)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert close(parameter.grad.numpy(), expected[name]), name


@pytest.mark.exhaustive
def test_kd_of_the_package():
    student, teacher = resnet(8, classes=10), resnet(14, classes=10)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 16, 16, 3)), rng.integers(10, size=4)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        taught = teacher.init(jax.random.key(1), images.astype(np.float32))
        taught = jax.tree.map(lambda x: np.asarray(x, np.float64), taught)
        method = Distillation(student, (Teacher(teacher, taught),), OBJECTIVES["kd"](), optax.sgd(1.0))
        state = method.init(jax.random.key(0), images.astype(np.float32))
        state = jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, state)
        variables = jax.tree.map(np.asarray, method.network_variables(state))
        step = compile_step(method, images, labels.astype(np.int32), state=state)
        _, metrics = step(step.place(state), *jax.device_put((images, labels.astype(np.int32))), jax.random.key(0))
        weights = [whole_weights(network, each) for network, each in ((student, variables), (teacher, taught))]
    ours, theirs = (
        in_torch(cut(net, 1, classes=10), each) for net, each in zip((student, teacher), weights, strict=True)
    )
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    loss = whole_loss(ours, theirs.eval(), inputs, torch.tensor(labels))
    np.testing.assert_allclose(loss.item(), metrics["student"]["loss"], rtol=1e-10)


def whole_weights(network, variables):
    """The weights of a network under the names of a network cut into one module."""
    one = cut(network, 1, classes=10)
    (module,) = one.modules
    of_module = {
        kind: {"blocks": {str(i): tree[name] for i, name in enumerate(network.names) if name in tree}}
        for kind, tree in variables.items()
    }
    return to_torch(one, {module.name: of_module})
