"""Training steps against the code of the successors of ContSup: every golden file, in float64.

The files are read from the folder KD_LOCAL_GOLDEN. A file has the settings, so that a test knows how to cut, and which
method to run. Weights are a function of their names.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from kd_local.contract import Method
from kd_local.interop import from_torch, to_torch
from kd_local.local import AugLocal, ContSup, cut
from kd_local.models import create
from kd_local.parallel import compile_step, on_every_device
from kd_local.state import new_part, variables_of
from tests.interop.golden_momentum import momentum_case
from tests.interop.golden_pairs import pairs_case
from tests.support.weights import weights_by_name

EXACT = 1e-7
ZERO = 1e-10
FOLDER = Path(os.environ.get("KD_LOCAL_GOLDEN", Path(__file__).parents[2] / "../shared/golden"))
METHODS = ("auglocal", "dgl", "predsim", "hpff", "mlaan", "man", "manpp")
FILES = sorted(path for name in METHODS for path in FOLDER.glob(f"{name}_*.npz"))
PATHS = [pytest.param(path, id=path.stem) for path in FILES] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no golden file of {', '.join(METHODS)} in {FOLDER}"))
]
pytestmark = [] if "KD_LOCAL_GOLDEN" in os.environ else [pytest.mark.exhaustive]


def kept_gradients() -> optax.GradientTransformation:
    """Its state is the gradients of the last step."""
    return optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))


def optimizer_of(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    of = settings["optimizer"]
    sgd = optax.sgd(of["lr"], momentum=of["momentum"], nesterov=of["nesterov"])
    return optax.chain(kept_gradients(), optax.add_decayed_weights(of["weight_decay"]), sgd)


@dataclass
class Case:
    """A method, the state before the first step, and names of tensors in PyTorch.

    Attributes:
        method: the method.
        state: with the weights of the file.
        named: variables of the state's parts, to arrays by their names in PyTorch.
        losses: metrics of all programs, to the losses of the modules in order.
        parts: metrics of all programs, to the unweighted losses in the order of the file.
        train_logits: the state before a step and images, to the logits of the step; None if the file has none.
    """

    method: Method
    state: dict[str, Any]
    named: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
    losses: Callable[[Mapping[str, Any]], list[Any]]
    parts: Callable[[Mapping[str, Any]], list[Any]]
    train_logits: Callable[[Mapping[str, Any], Any], Any] | None = None


def weights_of(file: Any, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    shapes = zip(file["state_names"].tolist(), map(json.loads, file["state_shapes"].tolist()), strict=True)
    return weights_by_name(dict(shapes), gain=settings.get("gain", 2))


def block(pair: tuple[int, int]) -> str:
    """The name of block B of stage S; 0, 0 is the stem."""
    return f"stage{pair[0]}/{pair[1]}" if pair[0] else "stem"


def of_cut_network(method: ContSup, weights: Mapping[str, np.ndarray], parts: Callable[..., Any]) -> Case:
    """A method whose programs are the modules of a cut network."""
    cut_network, trained = method.cut_network, [module.name for module in method.cut_network.modules]
    variables = from_torch(cut_network, weights, dtype=np.float64)
    state = {name: new_part(part, method.optimizer) if name in trained else part for name, part in variables.items()}
    return Case(
        method,
        state,
        lambda variables: to_torch(cut_network, variables),
        lambda metrics: [metrics[name]["loss"] for name in trained],
        parts,
    )


def auglocal(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Case:
    network = create(settings["network"], classes=settings["classes"])
    rule = AugLocal(depth=settings["depth"], pyramidal=bool(settings["pyramid"]))
    cut_network = cut(
        network,
        settings["modules"],
        classes=settings["classes"],
        boundaries=list(map(block, settings["boundaries"])),
        context="R0",
        auxiliary=rule,
    )
    for module, expected in zip(cut_network.modules, settings["auxiliary_blocks"], strict=False):
        assert [[one.features, one.stride] for one in module.auxiliary.blocks] == expected
    case = of_cut_network(ContSup(cut_network, optimizer_of(settings)), weights, lambda metrics: [])
    case.parts = case.losses
    return case


def pooled_head(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Case:
    """DGL and PredSim; in PredSim `hidden_dim` is the number of features after pooling."""
    of_predsim = settings["method"] == "predsim"
    cut_network = cut(
        create(settings["network"], classes=settings["classes"]),
        settings["modules"],
        classes=settings["classes"],
        boundaries=list(map(block, settings["boundaries"])),
        context="R0",
        head="pool" if of_predsim else "dgl",
        loss="predsim" if of_predsim else "softmax",
        aux_width=settings["hidden_dim"] / 512 if of_predsim else 1,
    )
    modules = [module.name for module in cut_network.modules]
    if not of_predsim:
        return of_cut_network(
            ContSup(cut_network, optimizer_of(settings)),
            weights,
            lambda metrics: [metrics[name]["loss"] for name in modules],
        )
    return of_cut_network(
        ContSup(cut_network, optimizer_of(settings)),
        weights,
        lambda metrics: [
            *(metrics[name][term] for name in modules[:-1] for term in ("similarity", "cross_entropy")),
            metrics[modules[-1]]["loss"],
        ],
    )


def of_pairs(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Case:
    return Case(*pairs_case(settings, weights, optimizer_of(settings)))


def momentum(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Case:
    cut_network, parts = momentum_case(settings, weights)
    return of_cut_network(ContSup(cut_network, optimizer_of(settings)), weights, parts)


CASES = {
    "auglocal": auglocal,
    "dgl": pooled_head,
    "predsim": pooled_head,
    "hpff": of_pairs,
    "mlaan": of_pairs,
    "man": momentum,
    "manpp": momentum,
}
assert tuple(CASES) == METHODS


@pytest.mark.parametrize("path", PATHS)
@jax.numpy_dtype_promotion("standard")
def test_steps_in_float64(path):
    with jax.enable_x64(True):
        file = np.load(path)
        settings = json.loads(str(file["settings"]))
        case = CASES[settings["method"]](settings, weights_of(file, settings))
        images, labels = inputs(file, settings, "")
        logits = jax.jit(case.method.logits)(case.state, images)
        wrong = deviations({"eval_logits": logits}, file, "", settings)
        step = compile_step(case.method, images, labels, state=case.state)
        everywhere = on_every_device(step.plan.mesh)
        state = jax.device_put(case.state, everywhere)
        for prefix in ("", "step2/")[: settings["steps"]]:
            placed = jax.device_put(inputs(file, settings, prefix), everywhere)
            if case.train_logits is not None:
                logits = jax.jit(case.train_logits)(state, placed[0])
                wrong |= deviations({"train_logits": logits}, file, prefix, settings)
            state, metrics = step(state, *placed, jax.random.key(0))
            wrong |= deviations(results(case, state, metrics), file, prefix, settings)
    assert not wrong


def inputs(file: Any, settings: Mapping[str, Any], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    exact = (file[f"{prefix}x"] - np.asarray(settings["mean"])) / np.asarray(settings["std"])
    np.testing.assert_allclose(file[f"{prefix}x64"], exact, rtol=1e-12, atol=1e-12)
    return exact, file[f"{prefix}y"].astype(np.int32)


def results(case: Case, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a golden file after a step; rows by the names in PyTorch."""
    trained = {name: part for name, part in state.items() if "opt_state" in part}
    averages = {name: part for name, part in state.items() if "opt_state" not in part}
    after = case.named({name: variables_of(part) for name, part in state.items()})
    of_gradients = {name: {**variables_of(part), "params": part["opt_state"][0]} for name, part in trained.items()}
    gradients = case.named(of_gradients | averages)
    return {
        "module_losses": np.asarray(case.losses(metrics)),
        "part_values": np.asarray(case.parts(metrics)),
        "grad": gradients,
        "after": after,
        "stat": after,
        "ema": after,
    }


def deviations(found: Mapping[str, Any], file: Any, prefix: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that differ by more than 1e-7: of an array's or a row's largest value, or of a norm."""
    wrong: dict[str, Any] = {}

    def compare(name: str, ours: Any, theirs: Any) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        scale = np.abs(theirs).max()
        error = np.abs(ours - theirs).max()
        if not error <= EXACT * scale:
            wrong[prefix + name] = (float(error), float(scale))

    for kind, ours in found.items():
        if not isinstance(ours, dict):
            compare(kind, ours, file[f"{prefix}{kind}"])
            continue
        names_of_kind = f"{prefix}{'grad' if kind in ('grad', 'after') else kind}_names"
        if names_of_kind not in file.files:
            continue
        norms, heads = file[f"{prefix}{kind}norm"], file[f"{prefix}{kind}head"]
        for name, norm, head in zip(file[names_of_kind].tolist(), norms, heads, strict=True):
            array = ours[name].ravel()
            assert array.dtype == np.float64, name
            if kind == "grad" and name in settings["zero_gradients"]:
                assert np.abs(array).max() < ZERO, name
                continue
            compare(f"{kind}norm/{name}", np.linalg.norm(array), norm)
            compare(f"{kind}head/{name}", array[:16], head[~np.isnan(head)])
    return wrong
