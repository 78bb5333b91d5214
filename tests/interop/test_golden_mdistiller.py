"""The zoo against mdistiller's networks: every golden file, in float64 and in float32.

Each file is named after a network of mdistiller. It has no weights: they are a function of their names (conftest.py).
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import load_network
from kd_local.models import create
from kd_local.networks import apply_block, of_block

FILES = sorted((Path(__file__).parents[1] / "golden").glob("mdistiller_*.npz"))
named = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("mdistiller_"))
# Networks with another name in mdistiller.
NAMES = {
    "MobileNetV2": "mobilenetv2_half",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
    **{f"ResNet{depth}": f"resnet{depth}_cifar" for depth in (18, 34, 50, 101)},
}
EXACT = 1e-7
# In training mode, PyTorch's float32 differs from its float64 by up to 1.3e-5.
SINGLE = 1e-4
ROUNDED = 2e-6


# One block at a time: equal blocks share one compilation.
run = partial(jax.jit, static_argnums=0, static_argnames="train")(apply_block)


def deviation(ours, theirs) -> float:
    """The largest error relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def deviations(path: Path, weights, dtype: type) -> dict[str, float]:
    file = np.load(path)
    name = path.stem.removeprefix("mdistiller_")
    network = create(NAMES.get(name, name), classes=file["eval_logits"].shape[1])
    state = zip(file["state_names"].tolist(), map(json.loads, file["state_shapes"].tolist()), strict=True)
    variables = load_network(network, weights({key: tuple(shape) for key, shape in state}), dtype=dtype)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == file["num_params"]
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32).astype(dtype)
    prefix = "float64/" if dtype is np.float64 else ""
    found = {}
    for train in (True, False):
        x, stage = jnp.asarray(images), 0
        for name, block in network:
            own = of_block(variables, name)
            before = x
            x, _ = run(block, own, x, train=train)
            assert x.dtype == dtype
            if train or name not in network.stages:
                continue
            entry = f"feat{stage}"
            assert x.shape == tuple(file[f"eval_{entry}_shape"]), entry
            # The entries are PyTorch's `std`, which is unbiased.
            std = x.std(ddof=0 if prefix else 1)
            found[f"{entry}_std"] = deviation(std, file[f"{prefix}eval_{entry}_std"])
            # Means can be near zero: their errors are relative to the averaged values.
            scale = float(jnp.abs(x).max())
            found[f"{entry}_mean"] = abs(float(x.mean()) - float(file[f"{prefix}eval_{entry}_mean"])) / scale
            head = np.abs(np.asarray(x).ravel()[:16] - file[f"{prefix}eval_{entry}_head"]).max()
            found[f"{entry}_head"] = float(head) / scale
            # For the stem the file has the output of ReLU.
            if stage > 0 and getattr(block, "relu", False):
                x_before, _ = run(block.clone(relu=False), own, before, train=False)
                np.testing.assert_array_equal(jax.nn.relu(x_before), x)
                scale = float(jnp.abs(x_before).max())
                for statistic, value in {"mean": x_before.mean(), "std": x_before.std(ddof=1)}.items():
                    expected = float(file[f"eval_preact{stage}_{statistic}"])
                    found[f"preact{stage}_{statistic}"] = abs(float(value) - expected) / scale
            stage += 1
        mode = "train" if train else "eval"
        found[f"{mode}_logits"] = deviation(x, file[f"{prefix}{mode}_logits"])
    assert f"eval_feat{stage}_shape" not in file, "they have one feature more"
    return found


@pytest.mark.usually("resnet8")
@named
@jax.numpy_dtype_promotion("standard")
def test_in_float64(path, weights):
    with jax.enable_x64(True):
        found = deviations(path, weights, np.float64)
    # Before ReLU the file has statistics in float32 only.
    limit = {name: ROUNDED if name.startswith("preact") else EXACT for name in found}
    assert not {name: value for name, value in found.items() if not value <= limit[name]}


@pytest.mark.long
@pytest.mark.usually("resnet8")
@named
@jax.numpy_dtype_promotion("standard")
def test_in_float32(path, weights):
    found = deviations(path, weights, np.float32)
    assert not {name: value for name, value in found.items() if not value <= SINGLE}
