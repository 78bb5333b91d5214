import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local.heads import HEADS, local_head


def shapes(kind: str, channels: int, outputs: int = 10) -> dict[str, tuple[int, ...]]:
    x = jnp.zeros((2, 8, 8, channels))
    params = local_head(kind, outputs=outputs).init(jax.random.key(0), x, train=False)["params"]
    return {
        name: value["conv"]["kernel"].shape if name.startswith("conv") else value["dense"]["kernel"].shape
        for name, value in params.items()
    }


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("0c1f", 16, {"linear0": (16, 10)}),
        ("0c2f", 16, {"linear0": (16, 128), "linear1": (128, 10)}),
        ("1c1f", 32, {"conv0": (3, 3, 32, 64), "linear0": (64, 10)}),
        ("1c2f", 16, {"conv0": (3, 3, 16, 32), "linear0": (32, 128), "linear1": (128, 10)}),
        ("1c2f", 64, {"conv0": (3, 3, 64, 64), "linear0": (64, 128), "linear1": (128, 10)}),
        ("1c3f", 16, {"conv0": (3, 3, 16, 32), "linear0": (32, 128), "linear1": (128, 128), "linear2": (128, 10)}),
        (
            "2c2f",
            16,
            {"conv0": (3, 3, 16, 32), "conv1": (3, 3, 32, 32), "linear0": (32, 128), "linear1": (128, 10)},
        ),
    ],
)
def test_layers_of_each_kind(kind, channels, expected):
    assert shapes(kind, channels) == expected


def test_0c1f_is_pooling_and_a_linear_layer():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 16))
    head = local_head("0c1f", outputs=5)
    variables = head.init(jax.random.key(1), x, train=False)
    dense = variables["params"]["linear0"]["dense"]
    expected = x.mean((1, 2)) @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(head.apply(variables, x, train=False), expected, rtol=1e-5, atol=1e-6)


def test_convolutions_of_narrow_features_halve_the_resolution():
    x = jnp.zeros((2, 8, 8, 16))
    head = local_head("2c2f", outputs=5)
    variables = head.init(jax.random.key(1), x, train=False)
    _, seen = head.apply(variables, x, train=False, capture_intermediates=True)
    outputs = {name: value["__call__"][0].shape for name, value in seen["intermediates"].items() if "conv" in name}
    assert outputs == {"conv0": (2, 4, 4, 32), "conv1": (2, 4, 4, 32)}


@pytest.mark.parametrize("kind", ["3c1f", "", "1c2", "1C2F"])
def test_unknown_heads_are_refused(kind):
    with pytest.raises(ValueError, match=f"unknown head {kind!r}: use {', '.join(HEADS[:-1])} or {HEADS[-1]}"):
        local_head(kind, outputs=10)
