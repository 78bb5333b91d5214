"""The speed program times the same steps as training."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import default
from experiments.speed.jax_step import JaxStep
from experiments.speed.peaks import peak_flops
from experiments.speed.predicted import predict
from experiments.speed.rows import FORMS, SpeedRow
from kd_local.local import cut
from kd_local.memory import CompilationRecords, target
from kd_local.models import resnet

STEPS, BATCH = 3, 8


@pytest.mark.parametrize("form", ("separate", "scanned"))
def test_a_round_is_steps_of_training(form):
    config = default.get_config()
    config.batch_size = BATCH
    step = JaxStep(SpeedRow("end_to_end", None, 1, form, "float32"), config, STEPS)
    assert (step._step.many is not None) == (form == "scanned")
    _, metrics = step.dispatch(STEPS)
    assert metrics["network"]["loss"].shape == ((STEPS,) if form == "scanned" else ())
    assert step.predicted_bytes > 0 and step.multiply_adds > 0


def test_the_peak_speed_of_a_device():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 2 * peak_flops("NVIDIA H100 80GB HBM3", "float32")
    assert peak_flops("TPU v5 lite", "float32") == peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("cpu", "float32") is None


@pytest.mark.exhaustive
def test_predictions_of_all_forms():
    """As for a device with these speeds. A call of several steps has the counts of one step."""
    config = default.get_config()
    config.batch_size = BATCH
    on = replace(target(), flops_per_second=1e12, bytes_per_second=1e11)
    found = {}
    for form in FORMS:
        row = SpeedRow("contsup", "R0", 2, form, "float32")
        found[form] = predict(row, config, on, STEPS, CompilationRecords())
        assert found[form]["seconds"] >= max(found[form]["flops"] / 1e12, found[form]["moved_bytes"] / 1e11)
    assert [found[form]["executables"] for form in FORMS] == [2, 1, 1]
    assert found["scanned"]["flops"] == pytest.approx(found["joined"]["flops"], rel=0.2)
    assert found["joined"]["flops"] == pytest.approx(found["separate"]["flops"], rel=0.1)


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
