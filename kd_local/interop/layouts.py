"""Layers that PyTorch and this package both have: names, layouts, and tensors brought from one to the other.

A network is described once, as layers that have a name there and a path here. Reading and writing follow the same
description, so that they cannot disagree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_local.models.layers import DType
from kd_local.networks import Variables

Kind = Literal["convolution", "linear", "batch_norm"]
Path = tuple[str, ...]

_HINT = "compare depth, widths and classes of the network, and how it is cut, with those of the weights"
_UNUSED = ".num_batches_tracked"


@dataclass(frozen=True)
class _Layout:
    """One tensor of a layer: its name there, its collection and name here, and PyTorch's axes in our order."""

    theirs: str
    collection: str
    ours: str
    axes: tuple[int, ...] = (0,)


_LAYOUTS: dict[Kind, tuple[_Layout, ...]] = {
    "convolution": (
        _Layout("weight", "params", "kernel", (2, 3, 1, 0)),  # OIHW to HWIO
        _Layout("bias", "params", "bias"),
    ),
    "linear": (
        _Layout("weight", "params", "kernel", (1, 0)),  # (out, in) to (in, out)
        _Layout("bias", "params", "bias"),
    ),
    "batch_norm": (
        _Layout("weight", "params", "scale"),
        _Layout("bias", "params", "bias"),
        _Layout("running_mean", "batch_stats", "mean"),
        _Layout("running_var", "batch_stats", "var"),
    ),
}


@dataclass(frozen=True)
class Layer:
    """A layer's name in PyTorch (`layer1.0.conv1`), its path in a collection of our variables, and its kind.

    Of a layer's tensors those count that the variables have: a convolution without bias, or a shortcut that is not
    there, needs no description of its own.
    """

    name: str
    path: Path
    kind: Kind


def conv_norm(convolution: str, norm: str, path: Path) -> tuple[Layer, Layer]:
    """The two layers of a `ConvNorm` at that path, by their names in PyTorch."""
    return Layer(convolution, (*path, "conv"), "convolution"), Layer(norm, (*path, "norm"), "batch_norm")


@dataclass(frozen=True)
class _Tensor:
    name: str
    path: Path
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.axes)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.axes))

    @property
    def their_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[self.axes.index(i)] for i in range(len(self.axes)))


def _tensors(layers: Iterable[Layer], shapes: Mapping[str, Any]) -> list[_Tensor]:
    leaves = flatten_dict(shapes)
    tensors = []
    for layer in layers:
        for layout in _LAYOUTS[layer.kind]:
            path = (layout.collection, *layer.path, layout.ours)
            if path in leaves:
                tensors.append(_Tensor(f"{layer.name}.{layout.theirs}", path, layout.axes, leaves[path].shape))
    if unnamed := leaves.keys() - {tensor.path for tensor in tensors}:
        raise ValueError(f"{'/'.join(min(unnamed))} has no name in PyTorch: describe its layer too")
    return tensors


def names(layers: Iterable[Layer], shapes: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in PyTorch of all tensors of these variables, in the order of the layers.

    Raises:
        ValueError: the layers do not cover the variables.
    """
    return tuple(tensor.name for tensor in _tensors(layers, shapes))


def read_layers(
    layers: Sequence[Layer], arrays: Mapping[str, Any], shapes: Mapping[str, Any], *, dtype: DType = None
) -> Variables:
    """Variables from arrays of PyTorch.

    Args:
        layers: all layers of the variables.
        arrays: by their names in PyTorch and in its layouts; others than those of the layers are not looked at.
        shapes: variables of the network, or `jax.ShapeDtypeStruct`s, of which only structure and shapes count.
        dtype: of the result; None keeps each array's.

    Returns:
        Variables of that structure, as numpy arrays of their own.

    Raises:
        ValueError: an array is missing, has another shape, or is not floating-point; or the layers do not cover the
            variables.
    """
    flat = flatten_dict(shapes, keep_empty_nodes=True)
    for tensor in _tensors(layers, shapes):
        flat[tensor.path] = np.array(tensor.to_ours(_array_of(tensor, arrays)), dtype, order="C")
    return unflatten_dict(flat)


def read_all(
    layers: Sequence[Layer], arrays: Mapping[str, Any], shapes: Mapping[str, Any], *, dtype: DType = None
) -> Variables:
    """`read_layers` of arrays among which there is nothing else, PyTorch's `num_batches_tracked` excepted.

    Raises:
        ValueError: as `read_layers` and `refuse_others`, naming the first that does not fit in the order of the layers;
            one that is unexpected comes behind the one that it follows in `arrays`.
    """
    tensors = _tensors(layers, shapes)
    place = {tensor.name: index for index, tensor in enumerate(tensors)}
    behind = 0
    for name, array in arrays.items():
        if name in place:
            behind = place[name] + 1
        elif not name.endswith(_UNUSED):
            for tensor in tensors[:behind]:
                _array_of(tensor, arrays)
            refuse_others({name: array}, place)
    return read_layers(layers, arrays, shapes, dtype=dtype)


def _array_of(tensor: _Tensor, arrays: Mapping[str, Any]) -> np.ndarray:
    if tensor.name not in arrays:
        raise ValueError(f"{tensor.name} is missing, expected in shape {tensor.their_shape}: {_HINT}")
    array = np.asarray(arrays[tensor.name])
    if array.shape != tensor.their_shape:
        raise ValueError(
            f"{tensor.name} has shape {array.shape}, expected {tensor.their_shape} (at {'/'.join(tensor.path)}): "
            f"{_HINT}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{tensor.name} is {array.dtype}, expected a floating dtype: weights of integers have no use")
    return array


def write_layers(
    layers: Sequence[Layer], variables: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Arrays by their names in PyTorch and in its layouts, dtypes kept: the inverse of `read_layers`.

    Raises:
        ValueError: the variables have not the structure and shapes of `shapes`, or the layers do not cover them.
    """
    flat = flatten_dict(variables)
    arrays = {}
    for tensor in _tensors(layers, shapes):
        place = "/".join(tensor.path)
        if tensor.path not in flat:
            raise ValueError(
                f"{place} is missing, expected in shape {tensor.shape}: give the network's whole variables"
            )
        array = np.asarray(flat.pop(tensor.path))
        if array.shape != tensor.shape:
            raise ValueError(
                f"{place} has shape {array.shape}, expected {tensor.shape}: give variables of this network"
            )
        arrays[tensor.name] = np.array(tensor.to_theirs(array), order="C")
    if flat:
        path = min(flat)
        raise ValueError(
            f"{'/'.join(path)} of shape {np.shape(flat[path])} is unexpected: give the variables of this network only"
        )
    return arrays


def refuse_others(arrays: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse arrays by any other name than the known ones; PyTorch's `num_batches_tracked` has no use and may stay.

    Raises:
        ValueError: naming the first of them.
    """
    names = set(known)
    for name, array in arrays.items():
        if name not in names and not name.endswith(_UNUSED):
            raise ValueError(
                f"{name} of shape {np.shape(array)} is unexpected, the network has nothing by that name: {_HINT}"
            )
