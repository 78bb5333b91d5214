"""Converts the layers that PyTorch and this package share: names and layouts of their tensors.

A network is described once, as layers with a name in PyTorch and a path in our variables. Reading and writing use the
same description, so that they are consistent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_local.models.layers import DType
from kd_local.networks import Variables

Kind = Literal[
    "convolution", "linear", "batch_norm", "layer_norm", "attention_input", "attention_output", "parameter", "scalar"
]
Path = tuple[str, ...]

_HINT = "compare depth, widths and classes of the network, and how it is cut, with those of the weights"
_UNUSED = ".num_batches_tracked"


@dataclass(frozen=True)
class _Layout:
    """One tensor of a layer.

    Attributes:
        theirs: the tensor's name in PyTorch; empty if it is the layer's name.
        collection: the collection of our variables.
        ours: the tensor's name in our variables; empty if the layer's path contains it.
        axes: the permutation from PyTorch's axes to ours.
        merged: for each axis of the tensor in PyTorch, the number of consecutive axes in `axes` that it merges; empty
            if no axes are merged.
    """

    theirs: str
    collection: str
    ours: str
    axes: tuple[int, ...] = (0,)
    merged: tuple[int, ...] = ()


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
    "layer_norm": (
        _Layout("weight", "params", "scale"),
        _Layout("bias", "params", "bias"),
    ),
    "attention_input": (  # query, key or value: (heads * c, in) to (in, heads, c)
        _Layout("weight", "params", "kernel", (2, 0, 1), (2, 1)),
        _Layout("bias", "params", "bias", (0, 1), (2,)),
    ),
    "attention_output": (  # (out, heads * c) to (heads, c, out)
        _Layout("weight", "params", "kernel", (1, 2, 0), (1, 2)),
        _Layout("bias", "params", "bias"),
    ),
    "parameter": (_Layout("", "params", "", (0, 1, 2)),),
    "scalar": (_Layout("", "params", "", ()),),
}


@dataclass(frozen=True)
class Layer:
    """A layer's name in PyTorch, such as `layer1.0.conv1`, its path in a collection of our variables, and its kind.

    Tensors of a layer that the variables lack are ignored, so that convolutions with and without bias, and blocks with
    and without a projection, have the same description.

    Attributes:
        part: the layer's index in tensors that several layers share along the first axis, and the number of layers.
        separator: the text between the layer's name and the names of its tensors.
    """

    name: str
    path: Path
    kind: Kind
    part: tuple[int, int] = (0, 1)
    separator: str = "."


def conv_norm(convolution: str, norm: str, path: Path) -> tuple[Layer, Layer]:
    """The two layers of the `ConvNorm` at a path, by their names in PyTorch."""
    return Layer(convolution, (*path, "conv"), "convolution"), Layer(norm, (*path, "norm"), "batch_norm")


@dataclass(frozen=True)
class _Tensor:
    name: str
    path: Path
    shape: tuple[int, ...]
    layout: _Layout
    part: tuple[int, int]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        rows = self._merged_shape[:1]
        own = array[self.part[0] * rows[0] :][: rows[0]] if self.part[1] > 1 else array
        return own.reshape(self._permuted_shape).transpose(self.layout.axes)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.layout.axes)).reshape(self._merged_shape)

    @property
    def their_shape(self) -> tuple[int, ...]:
        shape = self._merged_shape
        return (shape[0] * self.part[1], *shape[1:]) if shape else ()

    @property
    def _permuted_shape(self) -> tuple[int, ...]:
        axes = self.layout.axes
        return tuple(self.shape[axes.index(i)] for i in range(len(axes)))

    @property
    def _merged_shape(self) -> tuple[int, ...]:
        sizes = iter(self._permuted_shape)
        counts = self.layout.merged or (1,) * len(self.layout.axes)
        return tuple(math.prod(islice(sizes, count)) for count in counts)


def _tensors(layers: Iterable[Layer], shapes: Mapping[str, Any]) -> list[_Tensor]:
    leaves = flatten_dict(shapes)
    tensors = []
    for layer in layers:
        for layout in _LAYOUTS[layer.kind]:
            path = (layout.collection, *layer.path, *filter(None, [layout.ours]))
            if path in leaves:
                name = f"{layer.name}{layer.separator}{layout.theirs}" if layout.theirs else layer.name
                tensors.append(_Tensor(name, path, leaves[path].shape, layout, layer.part))
    if unnamed := leaves.keys() - {tensor.path for tensor in tensors}:
        raise ValueError(f"{'/'.join(min(unnamed))} has no name in PyTorch: describe its layer too")
    return tensors


def names(layers: Iterable[Layer], shapes: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in PyTorch of all tensors in the variables, in the order of the layers.

    Raises:
        ValueError: a variable belongs to no layer.
    """
    return tuple(dict.fromkeys(tensor.name for tensor in _tensors(layers, shapes)))


def read_layers(
    layers: Sequence[Layer], arrays: Mapping[str, Any], shapes: Mapping[str, Any], *, dtype: DType = None
) -> Variables:
    """Variables from PyTorch's arrays.

    Args:
        layers: all layers of the variables.
        arrays: arrays by their names in PyTorch, in its layouts. Arrays of no layer are ignored.
        shapes: variables of the network, or their `jax.ShapeDtypeStruct`s. Only structure and shapes matter.
        dtype: dtype of the result; None keeps each array's dtype.

    Returns:
        Variables with the structure of `shapes`, as new numpy arrays.

    Raises:
        ValueError: an array is missing, has another shape or is not floating-point, or a variable belongs to no layer.
    """
    flat = flatten_dict(shapes, keep_empty_nodes=True)
    for tensor in _tensors(layers, shapes):
        flat[tensor.path] = np.array(tensor.to_ours(_array_of(tensor, arrays)), dtype, order="C")
    return unflatten_dict(flat)


def read_all(
    layers: Sequence[Layer], arrays: Mapping[str, Any], shapes: Mapping[str, Any], *, dtype: DType = None
) -> Variables:
    """`read_layers`, with an error for arrays of no layer; PyTorch's `num_batches_tracked` is ignored.

    The arguments are those of `read_layers`.

    Raises:
        ValueError: see `read_layers` and `refuse_others`. The error names the first array that does not fit, in the
            order of the layers. An unexpected array counts as the successor of the array before it in `arrays`.
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
        raise ValueError(f"{tensor.name} is {array.dtype}, expected a floating dtype: save the weights as float32")
    return array


def write_layers(
    layers: Sequence[Layer], variables: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `read_layers`: arrays by their names in PyTorch, in its layouts, with unchanged dtypes.

    Raises:
        ValueError: the variables do not have the structure and shapes of `shapes`, or a variable belongs to no layer.
    """
    flat = flatten_dict(variables)
    parts: dict[str, list[np.ndarray]] = {}
    for tensor in _tensors(layers, shapes):
        place = "/".join(tensor.path)
        if tensor.path not in flat:
            raise ValueError(f"{place} is missing, expected in shape {tensor.shape}: give all variables of the network")
        array = np.asarray(flat.pop(tensor.path))
        if array.shape != tensor.shape:
            raise ValueError(
                f"{place} has shape {array.shape}, expected {tensor.shape}: give variables of this network"
            )
        parts.setdefault(tensor.name, []).append(tensor.to_theirs(array))
    if flat:
        path = min(flat)
        raise ValueError(
            f"{'/'.join(path)} of shape {np.shape(flat[path])} is unexpected: give only the variables of this network"
        )
    return {name: np.concatenate(arrays) if len(arrays) > 1 else np.array(arrays[0], order="C")
            for name, arrays in parts.items()}  # fmt: skip


def refuse_others(arrays: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses arrays whose names are not known. PyTorch's `num_batches_tracked` is ignored.

    Raises:
        ValueError: an array has an unknown name; the error names the first one.
    """
    names = set(known)
    for name, array in arrays.items():
        if name not in names and not name.endswith(_UNUSED):
            raise ValueError(
                f"{name} of shape {np.shape(array)} is unexpected, the network has no such tensor: {_HINT}"
            )
