"""Linear probes: the accuracy of a linear classifier on a module's features, independent of the module's loss.

Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv 1610.01644).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.precision import at_least_float32
from kd_local.ranges import Number
from kd_local.shapes import check_arrays, check_labels


def probe_accuracy(
    features: Float[Array, "train ..."],
    labels: Int[Array, " train"],
    test_features: Float[Array, "test ..."],
    test_labels: Int[Array, " test"],
    *,
    classes: int,
    ridge: float = 1e-3,
) -> Float[Array, ""]:
    """Test accuracy in [0, 1] of a linear classifier on features, fitted to the training labels by least squares.

    Features (n, h, w, c) are averaged over height and width. Each feature is centred and scaled to variance 1.

    Args:
        features: features of the training images.
        labels: labels of the training images, in [0, classes).
        test_features: features of the test images.
        test_labels: labels of the test images.
        classes: number of classes.
        ridge: this factor times the number of training images is added to the diagonal of the normal equations.

    Raises:
        ValueError: features and labels do not fit each other, a label is not below `classes`, or a number is out of
            range.
    """
    Number(1, 10**6, whole=True).check("classes", classes)
    Number(0, 1e9).check("ridge", ridge)
    check_arrays(features=(features, "float train ..."), labels=(labels, "int train"))
    check_arrays(test_features=(test_features, "float test ..."), test_labels=(test_labels, "int test"))
    if features.shape[1:] != test_features.shape[1:]:
        raise ValueError(f"features have shape {features.shape} and test_features {test_features.shape}: use the same")
    check_labels(labels, classes)
    train, test = (_pooled(x) for x in (features, test_features))
    mean, std = train.mean(axis=0, keepdims=True), train.std(axis=0, keepdims=True)
    train, test = ((x - mean) / jnp.maximum(std, 1e-6) for x in (train, test))
    targets = jax.nn.one_hot(labels, classes, dtype=train.dtype)
    offset = targets.mean(axis=0, keepdims=True)
    gram = train.T @ train + ridge * len(train) * jnp.eye(train.shape[1], dtype=train.dtype)
    weights = jnp.linalg.solve(gram, train.T @ (targets - offset))
    predicted = jnp.argmax(test @ weights + offset, axis=-1).astype(test_labels.dtype)
    return (predicted == test_labels).astype(jnp.float32).mean()


def _pooled(features: Array) -> Array:
    features = features.astype(at_least_float32(features.dtype))
    return features.mean(axis=(1, 2)) if features.ndim == 4 else features
