"""A small ContSup network against plain PyTorch: contsup_reference.npz, made by make_reference.py beside it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import from_torch, read_state_dict, to_torch
from kd_local.local import LOSSES, PixelScale, cut
from kd_local.models import resnet
from kd_local.networks import apply_block, of_block

PATH = Path(__file__).parents[1] / "golden" / "contsup_reference.npz"
FILE = np.load(PATH)
PIXELS = PixelScale(tuple(FILE["mean"].tolist()), tuple(FILE["std"].tolist()))
CUT = cut(
    resnet(8, classes=5, widths=(4, 4, 8, 8)),
    classes=5,
    boundaries=("stem", "stage1/0", "stage2/0"),
    context="R2E",
    loss="contrast",
    decoder=PIXELS,
    loss_scale=FILE["loss_scale"].tolist(),
    feature_width=8,
    aux_width=0.5,
)
STATE = read_state_dict(PATH)
VARIABLES = from_torch(CUT, STATE, dtype=np.float64)
IMAGES = (FILE["images"] - FILE["mean"]) / FILE["std"]
LABELS = FILE["labels"].astype(np.int32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def assert_same(ours, theirs):
    ours = np.asarray(ours)
    assert ours.dtype == np.float64 and ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-10 * np.abs(theirs).max()


def piece(module: int, name: str, network, *inputs):
    """A layer of module 2 or 3 in training mode; the file has the results at the boundary between them."""
    own = of_block(VARIABLES[CUT.modules[module].name], name)
    return apply_block(network, own, *map(jnp.asarray, inputs), train=True)[0]


def test_image_encoder():
    ours = piece(3, "context0", CUT.modules[3].contexts[0], IMAGES, FILE["piece/features"])
    assert_same(ours, FILE["piece/context0"])


@pytest.mark.parametrize("slot", [0, 1])
def test_feature_encoder(slot):
    index = slot + 1
    source = FILE[f"piece/source{slot}"]
    ours = piece(3, f"context{index}", CUT.modules[3].contexts[index], source, FILE["piece/features"])
    assert_same(ours, FILE[f"piece/context{index}"])


def test_head():
    assert_same(piece(2, "head", CUT.modules[2].auxiliary.network, FILE["piece/features"]), FILE["piece/head"])


def test_decoder():
    decoder = CUT.modules[2].reconstruction.decoder
    assert_same(
        jax.nn.sigmoid(piece(2, "decoder", decoder, FILE["piece/features"], IMAGES)),
        FILE["piece/decoder"],
    )


def test_pixels():
    assert_same(PIXELS.restore(jnp.asarray(IMAGES)), FILE["images"] / 255)


def test_contrastive_loss():
    features, labels = jnp.asarray(FILE["piece/head"]), jnp.asarray(LABELS)
    assert_same(LOSSES["contrast"](features, labels)["loss"], FILE["piece/contrast"])


def test_a_whole_training_step():
    assert_same(jax.jit(CUT.logits)(VARIABLES, IMAGES), FILE["eval_logits"])

    def objective(params, images, labels):
        variables = {name: {**part, "params": params[name]} for name, part in VARIABLES.items()}
        outputs = CUT.losses(variables, images, labels)
        return sum(outputs.losses.values()), outputs

    params = {name: part["params"] for name, part in VARIABLES.items()}
    (_, outputs), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, IMAGES, LABELS)
    assert_same(outputs.logits, FILE["train_logits"])
    assert_same([outputs.losses[module.name] for module in CUT.modules], FILE["module_losses"])
    after = {name: {"params": gradients[name], "batch_stats": outputs.batch_stats[name]} for name in params}
    arrays = to_torch(CUT, after)
    assert arrays.keys() == STATE.keys()
    for expected, statistics in ((FILE["gradients"], False), (FILE["statistics"], True)):
        names = [name for name in STATE if ("running" in name) == statistics]
        sizes = np.cumsum([STATE[name].size for name in names])
        for name, theirs in zip(names, np.split(expected, sizes[:-1]), strict=True):
            if np.abs(theirs).max() < 1e-10:  # batch normalisation cancels a bias before it
                assert np.abs(arrays[name]).max() < 1e-10, name
            else:
                assert_same(arrays[name].ravel(), theirs)
