"""One training step against the ContSup authors' code: every golden file, in float64 and in float32.

The files have 13 MB and are not in the repository: they are read from the folder KD_LOCAL_GOLDEN. A file's name says
what was computed: contsup_{network}_k{K}_{context}_{softmax|contrast}[_decoder][_balanced]_{data}.npz. The repository
has the file of a small network: test_reference.py.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from kd_local.interop import from_torch, read_state_dict, to_torch
from kd_local.local import ContSup, CutNetwork, PixelScale, balanced_memory, cut
from kd_local.models import resnet
from kd_local.parallel import compile_step, on_every_device
from kd_local.state import new_part

FOLDER = Path(os.environ.get("KD_LOCAL_GOLDEN", Path(__file__).parents[2] / "../shared/golden"))
# Files with decoders first, then by size: one more test uses the first file.
FILES = sorted(FOLDER.glob("contsup_*.npz"), key=lambda path: ("_decoder" not in path.stem, path.stat().st_size))
PATHS = [pytest.param(path, id=path.stem) for path in FILES] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"4 of 4 files contsup_*.npz are not in {FOLDER}"))
]
pytestmark = pytest.mark.exhaustive
NAME = re.compile(
    r"contsup_resnet(?P<depth>\d+)_k(?P<modules>\d+)_(?P<context>E|R\d+E?)_(?P<loss>softmax|contrast)"
    r"(?P<decoder>_decoder)?(?P<balanced>_balanced)?_(?P<data>[a-z0-9]+)"
)
CIFAR = PixelScale((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
HALF = PixelScale((127.5,) * 3, (127.5,) * 3)
EXACT = 1e-7
ZERO = 1e-10  # smaller gradients are rounding errors
# Tolerances in float32, in addition to the difference between the authors' float32 and float64. Errors of gradients are
# relative to the network's largest gradient, and mostly 1e-7. But rounding, in PyTorch as here, can move an activation
# across the kink of ReLU, with errors of up to 1e-5 in ResNet-32 and 3e-4 in ResNet-110.
VALUES, GRADIENTS = 1e-5, 1e-4

# Before JAX 0.11 the CPU's library of fusions crashes in programs with many branches, such as those of contexts E in
# one jit: nearly always in the evaluation of ResNet-32, K=8, R1E, with 8 images.
OLD = tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11)
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""} if OLD else {}

Entries = dict[str, np.ndarray]
"""Arrays by the names of a golden file: eval_logits, train_logits, module_losses, and gradnorm/, gradhead/ and
after/NAME."""


@dataclass
class Golden:
    """A golden file: the cut network of its name, inputs in one precision, and expected results in both."""

    cut_network: CutNetwork
    variables: dict
    images: np.ndarray
    labels: np.ndarray
    float64: Entries
    float32: Entries


def read(path: Path, dtype: type) -> Golden:
    match = NAME.fullmatch(path.stem)
    assert match, f"{path.name} is not named as golden files are"
    state = read_state_dict(path)
    file = np.load(path)
    classes = state["fc.weight"].shape[0]
    network, modules = resnet(int(match["depth"]), classes=classes), int(match["modules"])
    pixels = CIFAR if match["data"].startswith("cifar") else HALF
    cut_network = cut(
        network,
        modules,
        classes=classes,
        boundaries=balanced_memory(network, modules, data=match["data"]) if match["balanced"] else "equal",
        context=match["context"],
        loss=match["loss"],
        decoder=pixels if match["decoder"] else None,
        # Through text: .05 instead of the nearest float32.
        loss_scale=[float(str(number)) for number in file["loss_scale"]],
    )
    exact = (file["x"] - np.asarray(pixels.mean)) / np.asarray(pixels.std)
    np.testing.assert_allclose(file["x_normalised"], exact, rtol=1e-5, atol=1e-5)
    single = [name for name in file.files if not name.startswith(("float64/", "state/"))]
    return Golden(
        cut_network=cut_network,
        variables=from_torch(cut_network, state, dtype=dtype),
        images=exact if dtype is np.float64 else file["x_normalised"],
        labels=file["y"].astype(np.int32),
        float64={name.removeprefix("float64/"): file[name] for name in file.files if name.startswith("float64/")},
        float32={name: file[name] for name in single},
    )


def reference_form(golden: Golden, dtype: type) -> Entries:
    """The results of `CutNetwork.losses` and `CutNetwork.logits`."""

    def objective(params, images, labels):
        variables = {name: {**part, "params": params[name]} for name, part in golden.variables.items()}
        outputs = golden.cut_network.losses(variables, images, labels)
        return sum(outputs.losses.values()), outputs

    params = {name: part["params"] for name, part in golden.variables.items()}
    step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=OPTIONS)
    (_, outputs), gradients = step(params, golden.images, golden.labels)
    evaluate = jax.jit(golden.cut_network.logits, compiler_options=OPTIONS)
    logits = {"eval_logits": evaluate(golden.variables, golden.images), "train_logits": outputs.logits}
    return logits | entries(golden, outputs.losses, gradients, outputs.batch_stats, dtype)


def compiled_programs(golden: Golden, dtype: type) -> Entries:
    """The results of the compiled programs of training, for one step of SGD with learning rate 1."""
    method = ContSup(golden.cut_network, optax.sgd(1.0))
    state = {name: new_part(variables, method.optimizer) for name, variables in golden.variables.items()}
    step = compile_step(method, golden.images, golden.labels, state=state)
    placed = jax.device_put((state, golden.images, golden.labels), on_every_device(step.plan.mesh))
    state, metrics = step(*placed, jax.random.key(0))
    gradients = {
        name: jax.tree.map(lambda before, after: before - np.asarray(after), part["params"], state[name]["params"])
        for name, part in golden.variables.items()
    }
    losses = {name: each["loss"] for name, each in metrics.items()}
    return entries(golden, losses, gradients, {name: part["batch_stats"] for name, part in state.items()}, dtype)


def entries(golden: Golden, losses, gradients, statistics, dtype: type) -> Entries:
    after = {name: {"params": gradients[name], "batch_stats": statistics[name]} for name in gradients}
    found = {"module_losses": np.array([losses[module.name] for module in golden.cut_network.modules])}
    for name, array in to_torch(golden.cut_network, after).items():
        assert array.dtype == dtype, name
        if "running" in name:
            found[f"after/{name}"] = array
        elif f"gradnorm/{name}" not in golden.float64:
            assert not array.any(), f"{name} got no gradient from the authors' code"
        else:
            found[f"gradnorm/{name}"] = np.linalg.norm(array.ravel().astype(np.float64))
            found[f"gradhead/{name}"] = array.ravel()[:16]
    return found


def deviations(found: Entries, expected: Entries, *, gradients_to: float | None = None) -> dict[str, float]:
    """The largest error of each entry relative to its largest value, or of gradients relative to a given value."""
    assert {name for name in expected if name.startswith("grad")} <= found.keys() <= expected.keys()
    result = {}
    for name, array in found.items():
        ours, theirs = np.asarray(array), expected[name]
        assert ours.shape == theirs.shape, name
        scale = np.abs(theirs).max()
        if name.startswith("grad"):
            scale = gradients_to or (scale if scale > ZERO else ZERO / EXACT)
        result[name] = float(np.abs(ours - theirs).max() / scale)
    return result


def worst(found: dict[str, float], kind: bool) -> float:
    return max(value for name, value in found.items() if name.startswith("grad") == kind)


@pytest.mark.parametrize("path", PATHS)
@jax.numpy_dtype_promotion("standard")
def test_one_step_in_float64(path):
    with jax.enable_x64(True):
        golden = read(path, np.float64)
        found = deviations(reference_form(golden, np.float64), golden.float64)
    assert not {name: value for name, value in found.items() if not value <= EXACT}


@pytest.mark.parametrize("path", PATHS)
@jax.numpy_dtype_promotion("standard")
def test_one_step_in_float32(path):
    golden = read(path, np.float32)
    largest = max(norm for name, norm in golden.float32.items() if name.startswith("gradnorm/"))
    found = deviations(reference_form(golden, np.float32), golden.float32, gradients_to=largest)
    own = {name: golden.float32[name] for name in found}
    rounding = deviations(own, golden.float64, gradients_to=largest)
    for name, value in found.items():
        gradient = name.startswith("grad")
        limit = (GRADIENTS if gradient else VALUES) + 2 * worst(rounding, gradient)
        assert value <= limit, name


@pytest.mark.parametrize("path", PATHS[:1])
@jax.numpy_dtype_promotion("standard")
@pytest.mark.exhaustive
def test_compiled_programs_compute_the_same_step(path):
    with jax.enable_x64(True):
        golden = read(path, np.float64)
        found = deviations(compiled_programs(golden, np.float64), golden.float64)
    assert not {name: value for name, value in found.items() if not value <= EXACT}
