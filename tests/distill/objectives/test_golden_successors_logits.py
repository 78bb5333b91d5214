"""Losses on logits against their authors' code: every golden file of the kind, in float64, values and gradients.

The files are read from the folder KD_LOCAL_GOLDEN. A file has the names of its losses and their hyper-parameters.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objective import Outputs
from kd_local.distill.objectives.crld import crld_loss
from kd_local.distill.objectives.dkd import DKD
from kd_local.distill.objectives.gdkd import gdkd_loss
from kd_local.distill.objectives.kd import KD
from kd_local.distill.objectives.mlkd_two_views import mlkd_two_views_loss
from kd_local.distill.objectives.nkd import NKD, nkd_loss
from kd_local.distill.objectives.ofa import ofa_loss
from kd_local.distill.objectives.rld import rld_loss
from kd_local.distill.objectives.ttm import ttm_loss
from kd_local.distill.regions import by_region, region_logits
from kd_local.local.losses import softmax
from kd_local.models.ends import Classifier
from kd_local.networks import Network

EXACT = 1e-7
FOLDER = Path(os.environ.get("KD_LOCAL_GOLDEN", Path(__file__).parents[3] / "../shared/golden"))
FILES = sorted(FOLDER.glob("distill_logit_losses*.npz"))
PATHS = [pytest.param(path, id=path.stem) for path in FILES] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no golden file of logit losses in {FOLDER}"))
]
pytestmark = [] if "KD_LOCAL_GOLDEN" in os.environ else [pytest.mark.exhaustive]

Arrays = Mapping[str, Any]
Loss = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
"""The student's logits of the weak and of the strong view, to the loss and its parts by name."""


def on_one_view(loss: Callable[..., Any], *targets: Any, **numbers: Any) -> Loss:
    return lambda student, strong: (loss(student, *targets, **numbers), {})


def numbers_of(of: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The hyper-parameters of a loss, by our names; none is left out."""
    assert of.keys() <= names.keys(), f"{of.keys() - names.keys()} unknown"
    return {names[name]: value for name, value in of.items()}


def ttm(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    return on_one_view(ttm_loss, file["teacher"], weighted=name.startswith("w"), **numbers_of(of, {"gamma": "gamma"}))


def rld(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    names = {"alpha": "alpha", "beta": "beta", "T": "temperature", "alpha_T": "alpha_temperature"}
    numbers = numbers_of(of, names)
    return on_one_view(rld_loss, file["teacher"], file["labels"], standardised="standardised" in name, **numbers)


def gdkd(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    weights = dict(zip(("masses", "top", "rest"), of["w"], strict=True))
    loss = partial(gdkd_loss, target=file["teacher"], k=of["k"], temperature=of["T"])

    def parts(student: Any, strong: Any) -> tuple[Any, dict[str, Any]]:
        alone = {part: [float(part == each) for each in weights] for part in weights}
        names = ("mass_weight", "top_weight", "rest_weight")
        found = {part: loss(student, **dict(zip(names, alone[part], strict=True))) for part in weights}
        return loss(student, **dict(zip(names, weights.values(), strict=True))), found

    return parts


def nkd(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    numbers = numbers_of(of, {"gamma": "gamma", "T": "temperature"})
    return on_one_view(nkd_loss, file["teacher"], file["labels"], keep_label="label_kept" in name, **numbers)


def ofa(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    return on_one_view(ofa_loss, file["teacher"], file["labels"], **numbers_of(of, {"eps": "eps"}))


def on_two_views(file: Arrays, terms: Callable[..., Any], weights: Mapping[str, tuple[str, float]], ce: float) -> Loss:
    """A loss of two views: our terms, with the file's name and the weight of each, and cross entropies."""

    def loss(student: Any, strong: Any) -> tuple[Any, dict[str, Any]]:
        found = terms(student, file["teacher"], strong, file["teacher_strong"])
        parts = {part: weight * found[ours] for ours, (part, weight) in weights.items()}
        parts["loss_ce"] = ce * sum(softmax(logits, file["labels"])["loss"] for logits in (student, strong))
        return sum(parts.values()), parts

    return loss


def crld(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    thresholds = {"weak_threshold": of["tau_w"], "strong_threshold": of["tau_s"]}
    weights = {"within_view": ("loss_kd_wv", of["within"]), "cross_view": ("loss_kd_cv", of["cross"])}
    return on_two_views(file, partial(crld_loss, temperature=of["T"], **thresholds), weights, of["ce"])


def mlkd(name: str, of: Mapping[str, Any], file: Arrays) -> Loss:
    terms = partial(mlkd_two_views_loss, temperatures=tuple(of["T"]), standardised=of["standardise"])
    names = {"predictions": "loss_kd", "classes": "loss_cc", "samples": "loss_bc"}
    weights = {ours: (part, of["kd"]) for ours, part in names.items()}
    return on_two_views(file, terms, weights, of["ce"])


LOSSES: dict[str, Callable[[str, Mapping[str, Any], Arrays], Loss]] = {
    "ttm": ttm,
    "wttm": ttm,
    "rld": rld,
    "gdkd": gdkd,
    "nkd": nkd,
    "ofa": ofa,
    "crld": crld,
    "mlkd": mlkd,
}
"""By the first word of the name of a loss."""


def close(found: Any, expected: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * np.abs(expected).max(), err_msg=name)


def check_gradient(gradient: np.ndarray, file: Arrays, name: str, view: str = "") -> None:
    close(gradient, file[f"grad{view}/{name}"], f"grad{view}/{name}")
    norms = file[f"gradnorm{view}/{name}"]
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), norms, rtol=EXACT, atol=1e-12, err_msg=name)


DISTANCES_OF_REGIONS = {
    "kd": (KD, {"T": "temperature"}),
    "dkd": (DKD, {"alpha": "alpha", "beta": "beta", "T": "temperature"}),
    "nkd": (NKD, {"gamma": "gamma", "T": "temperature"}),
}


def check_regions_loss(name: str, of: Mapping[str, Any], file: Arrays, arrays: Arrays) -> None:
    """SDD; the file's arrays are (sample, class, region), and it has whole gradients of two regions."""
    kind, names = DISTANCES_OF_REGIONS[name.split("_")[1]]
    options = {"keep_label": "label_kept" in name} if kind is NKD else {}
    distance = kind(**numbers_of(of, names), **options).distance
    student, target = (arrays[f"{network}_regions"].transpose(0, 2, 1) for network in ("student", "teacher"))
    loss = lambda student: by_region(distance, student, target, arrays["labels"])
    value, gradient = jax.jit(jax.value_and_grad(loss))(student)
    np.testing.assert_allclose(value, file[f"loss/{name}"], rtol=EXACT, err_msg=name)
    whole = file[f"grad/{name}"]
    close(gradient.transpose(0, 2, 1)[..., : whole.shape[-1]], whole, f"grad/{name}")
    norms = np.linalg.norm(gradient, axis=-1)
    np.testing.assert_allclose(norms, file[f"gradnorm/{name}"], rtol=EXACT, atol=1e-12, err_msg=name)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("path", PATHS)
def test_losses_are_those_of_their_authors(path):
    file: Arrays = dict(np.load(path).items())
    settings = json.loads(str(file["settings"]))
    arrays = {name: jnp.asarray(array) for name, array in file.items() if array.dtype.kind in "fi"}
    for name, of in settings["losses"].items():
        if name.startswith("sdd"):
            check_regions_loss(name, of, file, arrays)
            continue
        loss = LOSSES[name.split("_")[0].rstrip("0123456789.")](name, of, arrays)
        gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, parts), (weak, strong) = gradients(arrays["student"], arrays["student_strong"])
        np.testing.assert_allclose(value, file[f"loss/{name}"], rtol=EXACT, err_msg=name)
        check_gradient(weak, file, name)
        if f"grad_strong/{name}" in file:
            check_gradient(strong, file, name, "_strong")
        for key in (key for key in file if key.startswith(f"part/{name}/")):
            np.testing.assert_allclose(parts[key.split("/")[2]], file[key], rtol=EXACT, err_msg=key)
    for key in (key for key in file if key.startswith("regions/logits_")):
        size, scales = key.removeprefix("regions/logits_").split("_")
        features = arrays[f"regions/features_{size}"]
        weight, bias = (arrays[f"regions/{part}_{size}"] for part in ("weight", "bias"))
        network = Network.of({"head": Classifier(len(bias))})
        variables = {"params": {"head": {"linear": {"dense": {"kernel": weight.T, "bias": bias}}}}}
        found = Outputs((), (), None, None, before_pooling=features)
        logits = region_logits(network, variables, found, tuple(map(int, scales)))
        close(logits.transpose(0, 2, 1), file[key], key)
