"""Every loss against the reference implementations in PyTorch: its value, and the norm of its gradient.

The numbers were computed once by mdistiller (and, for standardised logits, MLKD and DIST, by their authors' code) in
float32, on inputs that a seed gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.at import attention_loss
from kd_local.distill.objectives.dist import dist_loss
from kd_local.distill.objectives.dkd import dkd_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd import batch_correlation_loss, class_correlation_loss
from kd_local.distill.objectives.nst import nst_loss
from kd_local.distill.objectives.ofd import ofd_loss
from kd_local.distill.objectives.pkt import pkt_loss
from kd_local.distill.objectives.reviewkd import hcl_loss
from kd_local.distill.objectives.rkd import rkd_loss
from kd_local.distill.objectives.sp import similarity_loss


@dataclass(frozen=True)
class Golden:
    """A reference value.

    Attributes:
        input: of both networks, the student's first.
        loss: of the two inputs, and of the labels if it takes three arguments.
        value: of the loss.
        gradient: the norm of its gradient with respect to the student's input, of the whole batch.
        first_image: True if the norm is that of the first image's gradient alone.
    """

    input: str
    loss: Callable
    value: float
    gradient: float
    first_image: bool = False


def margin_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    return ofd_loss(student, teacher, jnp.full(student.shape[-1:], -0.5, student.dtype))


dkd = partial(partial, dkd_loss, alpha=1.0, temperature=4.0)
GOLDEN = {
    "kd T=4": Golden("logits", partial(kd_loss, temperature=4.0), 3.7807092666625977, 0.0739009752869606),
    "dkd beta=8": Golden("logits", dkd(beta=8.0), 30.309846878051758, 0.594953179359436),
    "dkd beta=2": Golden("logits", dkd(beta=2.0), 7.599164962768555, 0.14883160591125488),
    "at stem": Golden("feat0", attention_loss, 0.0004713553353212774, 3.030109155588434e-06),
    "at stage 1": Golden("feat1", attention_loss, 0.0010947929695248604, 1.4334850675368216e-05),
    "rkd": Golden("pooled", rkd_loss, 0.38489222526550293, 0.05608866363763809),
    "sp": Golden("feat2", similarity_loss, 0.0001243396254722029, 1.799594610929489e-05),
    "pkt": Golden("pooled", pkt_loss, 0.0006109027890488505, 6.98210860718973e-05),
    "nst": Golden("feat2", nst_loss, 0.027703389525413513, 0.0005462343688122928),
    "ofd": Golden("feat1", margin_loss, 22231.6796875, 74.55146789550781),
    "hcl": Golden("feat1", hcl_loss, 1.5002479553222656, 0.005078509449958801),
    "kd standardised T=2": Golden(
        "logits", partial(kd_loss, temperature=2.0, standardised=True), 0.9599951505661011, 0.004028574097901583, True
    ),
    "kd standardised T=4": Golden(
        "logits", partial(kd_loss, temperature=4.0, standardised=True), 0.9661584496498108, 0.0037245810963213444, True
    ),
    "dkd standardised": Golden(
        "logits", dkd(beta=8.0, temperature=2.0, standardised=True), 7.698962688446045, 0.032555364072322845, True
    ),
    "mlkd classes": Golden(
        "logits", partial(class_correlation_loss, temperature=4.0), 2.1566140276263468e-05, 3.3499827623018064e-07, True
    ),
    "mlkd batch": Golden(
        "logits", partial(batch_correlation_loss, temperature=4.0), 3.13488521896943e-06, 6.40290878095584e-08, True
    ),
    "dist": Golden("logits", dist_loss, 2.0024254322052, 0.007026474457234144, True),
}


@cache
def seeded_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"feat0": (16, 16, 32, 32), "feat1": (16, 32, 16, 16), "feat2": (16, 64, 8, 8)}
    inputs = {f"{side}_logits": 2 * rng.standard_normal((16, 100)) for side in ("student", "teacher")}
    inputs["labels"] = rng.integers(0, 100, 16)
    for side in ("student", "teacher"):
        for name, shape in shapes.items():
            inputs[f"{side}_{name}"] = np.maximum(2 * rng.standard_normal(shape), 0).transpose(0, 2, 3, 1)
    for side in ("student", "teacher"):
        inputs[f"{side}_pooled"] = 2 * rng.standard_normal((16, 64))
    return {name: array.astype(np.int32 if name == "labels" else np.float32) for name, array in inputs.items()}


# The reference is float32; losses in float64 differ from it by 3e-6 or less.
@pytest.mark.usually(*(f"{name}-float64-1e-05" for name in GOLDEN))
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-5), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", GOLDEN)
def test_value_and_gradient(name, dtype, tolerance):
    golden, inputs = GOLDEN[name], seeded_inputs()
    with jax.enable_x64(dtype is np.float64):
        arguments = [jnp.asarray(inputs[f"{side}_{golden.input}"].astype(dtype)) for side in ("student", "teacher")]
        if name.startswith("dkd"):
            arguments.append(jnp.asarray(inputs["labels"]))
        value, gradient = jax.jit(jax.value_and_grad(golden.loss))(*arguments)
    assert value.dtype == gradient.dtype == dtype
    norm = np.linalg.norm(np.asarray(gradient[0] if golden.first_image else gradient, np.float64))
    np.testing.assert_allclose([float(value), norm], [golden.value, golden.gradient], rtol=tolerance)
