import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.data.augmentation import Augmentation, normalise
from kd_local.local import PixelScale, cut
from kd_local.local.decoders import Decoder, reconstruction_loss, resize_bilinear
from kd_local.models import resnet


def test_bilinear_resizing_aligns_corners():
    x = jnp.array([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    # The values are those of the plane 2 row + column, whose corners are 0, 1, 2 and 3.
    row, column = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 5), indexing="ij")
    np.testing.assert_allclose(resize_bilinear(x, (3, 5))[0, :, :, 0], 2 * row + column, atol=1e-6)
    assert resize_bilinear(x, (2, 2)) is x
    np.testing.assert_allclose(resize_bilinear(x[:, :1, :1], (2, 2)), np.zeros((1, 2, 2, 1)))


def test_restore_inverts_the_normalisation():
    scale = Augmentation(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    restored = PixelScale(scale.mean, scale.std).restore(normalise(scale, images))
    np.testing.assert_allclose(restored, images / 255, atol=1e-6)


def test_reconstruction_loss_by_hand():
    p, x = np.array([0.2, 0.9]), np.array([0.0, 0.5])
    logits = jnp.asarray(np.log(p / (1 - p)), jnp.float32).reshape(1, 1, 2, 1)
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).mean()
    found = reconstruction_loss(logits, jnp.asarray(x, jnp.float32).reshape(1, 1, 2, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_output_of_a_decoder_has_the_shape_of_the_images():
    features, images = jnp.ones((2, 4, 4, 16)), jnp.ones((2, 8, 8, 3))
    variables = Decoder(width=5).init(jax.random.key(0), features, images, train=False)
    assert variables["params"]["conv1"]["conv"]["kernel"].shape == (3, 3, 16, 5)
    assert Decoder(width=5).apply(variables, features, images, train=False).shape == images.shape


@pytest.mark.long
def test_the_loss_of_a_module_is_the_weighted_sum_of_both_losses():
    """Boundary 1 of 3 has the mean of the weights (4, 0) and (0, 2)."""
    pixels = PixelScale((127.5,) * 3, (127.5,) * 3)
    network = resnet(8, classes=10)
    cut_network = cut(network, 4, classes=10, context="R0", decoder=pixels, loss_scale=(4.0, 0.0, 0.0, 2.0))
    images, labels = jnp.ones((4, 8, 8, 3)), jnp.arange(4, dtype=jnp.int32)
    variables = cut_network.init(jax.random.key(0), images)
    module = cut_network.modules[1]
    assert module.weights == (2.0, 1.0)
    assert module.reads == ("features0", "images")
    h = jax.random.normal(jax.random.key(1), (4, 8, 8, 16))
    metrics = module.evaluate(variables[module.name], [h, images], labels, train=True)[0]
    expected = 2 * metrics["reconstruction_loss"] + metrics["head_loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert [m.reconstruction is None for m in cut_network.modules] == [False, False, False, True]
    # Modules with different weights are equal, so that they share an executable.
    other = cut(network, 4, classes=10, context="R0", decoder=pixels, loss_scale=(1.0, 1.0, 1.0, 1.0))
    assert other.modules[1] == module


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((1.0,), (1.0, 2.0), "one finite number for each channel"),
        ((float("nan"),), (1.0,), "one finite number for each channel"),
        ((1.0,), (0.0,), "use numbers above 0"),
    ],
)
def test_impossible_scales_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        PixelScale(mean, std)
