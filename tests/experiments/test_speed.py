"""The speed program times the same steps as training."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import default
from experiments.from_config.experiment import build
from experiments.speed.jax_step import scanned, synthetic
from experiments.speed.rows import SpeedRow
from kd_local.local import cut
from kd_local.models import resnet
from kd_local.parallel import plan_step
from kd_local.training.inputs import keys
from kd_local.training.loop import training_plan
from kd_local.training.training_step import prepare_step

STEPS, BATCH = 3, 8


@pytest.mark.exhaustive
def test_scanned_steps_equal_those_of_training():
    config = default.get_config()
    config.batch_size, config.local.modules = BATCH, 2
    experiment = build(config)
    data, options = synthetic(experiment.shape, BATCH), replace(experiment.options, form="joined")
    run = training_plan(len(data.train), epochs=9, batch_size=BATCH, steps=None, mesh=experiment.mesh)
    step, state = prepare_step(experiment.method, data, run, seed=0, mesh=experiment.mesh, options=options, extra={})
    images, labels = data.train.images, data.train.labels
    chosen = np.random.default_rng(1).integers(len(images), size=(STEPS, BATCH))
    rng, init_rng = keys(0)
    like = jax.ShapeDtypeStruct((BATCH, *experiment.shape), np.float32)
    start = experiment.method.init(init_rng, like)
    plan = plan_step(experiment.method, like, jax.ShapeDtypeStruct((BATCH,), np.int32), options=options)
    many = scanned(plan, data.augmentation)
    after, each = many(start, images, labels, rng, np.arange(STEPS, dtype=np.uint32), chosen.astype(np.int32))
    for number, rows in enumerate(chosen):
        state, metrics = step(state, number, rows, images[rows], labels[rows])
        for name, values in metrics.items():
            np.testing.assert_allclose(each[name]["loss"][number], values["loss"], rtol=1e-4)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_unknown_forms_and_precisions_are_refused():
    with pytest.raises(ValueError, match="form"):
        SpeedRow("end_to_end", None, 1, "nchw", "float32")
    with pytest.raises(ValueError, match="dtype"):
        SpeedRow("end_to_end", None, 1, "nchw+compile", "float16", "pytorch")


@pytest.mark.parametrize("context", ("R0", "R1E"))
def test_pytorch_computes_the_same_losses(context):
    torch = pytest.importorskip("torch")
    from experiments.speed.torch_step import CutResNet
    from kd_local.interop import to_torch

    cut_network = cut(resnet(8, classes=10), 4, classes=10, context=context)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 16, 16, 3)), rng.integers(10, size=4)
    with jax.enable_x64(True):
        images = jnp.asarray(images)
        variables = cut_network.init(jax.random.key(0), images.astype(np.float32))
        variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
        losses = jax.jit(partial(cut_network.losses, train=True))
        expected = losses(variables, images, jnp.asarray(labels, np.int32)).losses
        weights = {name: torch.tensor(np.array(array)) for name, array in to_torch(cut_network, variables).items()}
    network = CutResNet(cut_network, 10, 3).double()
    assert not [name for name in network.load_state_dict(weights, strict=False).missing_keys if "num_" not in name]
    tensors = {"images": torch.tensor(np.array(images).transpose(0, 3, 1, 2))}
    for number, module in enumerate(cut_network.modules):
        read = (tensors[name] for name in module.reads)
        loss, *written = network.module_loss(number, torch.tensor(labels), *read)
        tensors.update(zip(module.writes, written, strict=False))
        np.testing.assert_allclose(loss.item(), expected[module.name], rtol=1e-12)
