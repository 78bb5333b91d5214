"""Networks as named sequences of blocks: the structure that `local` cuts and `distill` splices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.batch_division import devices_of_a_batch, normalised_per_device
from kd_local.errors import check_type, unknown
from kd_local.quick_compilation import jit_quickly
from kd_local.rematerialization import rematerialize

Collection = dict[str, Any]
Variables = dict[str, Collection]
"""`{"params": {block: ...}, "batch_stats": {block: ...}}`; a block without parameters or statistics has no entry."""

COLLECTIONS = ("params", "batch_stats")


def of_block(variables: Mapping[str, Any], name: str) -> Variables:
    """The variables of one block, without the collections in which it has no entry.

    >>> of_block({"params": {"stem": {"kernel": 1}, "head": {"bias": 2}}, "batch_stats": {"stem": {"mean": 3}}}, "head")
    {'params': {'bias': 2}}
    """
    return {key: variables[key][name] for key in COLLECTIONS if name in variables.get(key, {})}


def by_block(blocks: Mapping[str, Mapping[str, Any]]) -> Variables:
    """The variables of several blocks, given each block's own: the inverse of `of_block`.

    >>> by_block({"stem": {"params": {"kernel": 1}, "batch_stats": {"mean": 3}}, "head": {"params": {"bias": 2}}})
    {'params': {'stem': {'kernel': 1}, 'head': {'bias': 2}}, 'batch_stats': {'stem': {'mean': 3}}}
    """
    return {
        collection: {name: own[collection] for name, own in blocks.items() if collection in own}
        for collection in COLLECTIONS
    }


def init_block(block: nn.Module, rng: PRNGKeyArray, *inputs: Any) -> Mapping[str, Any]:
    """New variables of one block, by an initialisation that is compiled once for equal blocks.

    Args:
        block: a linen module, called as `block(*inputs, train=...)`.
        rng: a key.
        *inputs: arrays or `jax.ShapeDtypeStruct`s. Only shapes and dtypes matter.
    """
    return _init_compiled(block, rng, *(jnp.zeros(x.shape, x.dtype) for x in inputs))


@jit_quickly(static_argnums=(0,))
def _init_compiled(block: nn.Module, rng: PRNGKeyArray, *inputs: Array) -> Mapping[str, Any]:
    return block.init(rng, *inputs, train=False)


def apply_block(block: nn.Module, variables: Mapping[str, Any], *inputs: Any, train: bool) -> tuple[Array, Collection]:
    """`(output, batch statistics)` of one block. Equal blocks with inputs of equal shapes are traced once.

    In training mode the statistics are updated. They are empty for a block without batch normalisation.
    """
    if block.scope is not None:  # it is part of another linen module, and has no hash
        block = block.clone(parent=None)
    if not train:
        return _evaluate(block, variables, *inputs), variables.get("batch_stats", {})
    return _train(block, devices_of_a_batch(), variables, *inputs)


def output_shape(block: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a block's output in evaluation mode. Only shapes and dtypes of the arguments matter."""
    return _evaluate.eval_shape(block, variables, *inputs)


@partial(jax.jit, static_argnums=0)
def _evaluate(block: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> Array:
    return block.apply(variables, *inputs, train=False)  # type: ignore[return-value]


@partial(jax.jit, static_argnums=(0, 1))
def _train(block: nn.Module, devices: int, variables: Mapping[str, Any], *inputs: Any) -> tuple[Array, Collection]:
    with normalised_per_device(devices):
        output, updated = block.apply(variables, *inputs, train=True, mutable=["batch_stats"])
    return output, updated.get("batch_stats", {})


@dataclass(frozen=True)
class Network:
    """A sequence of named blocks. A block's name also names a boundary: the position after the block.

    >>> network = Network.of({"stem": nn.Dense(8), "stage1/0": nn.Dense(8), "head": nn.Dense(2)})
    >>> len(network), network.stages
    (3, ('stem', 'stage1/0'))
    >>> network[1:].names
    ('stage1/0', 'head')

    A block is a linen module, called as `block(x, train=...)`. It has no variables other than `params` and
    `batch_stats`. The names of blocks of one stage have the same text before the slash.

    Attributes:
        names: the blocks' names, all different.
        modules: the blocks in order (linen modules, not the modules of a cut network).

    Raises:
        ValueError: there are no blocks, or two blocks have the same name.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    start: Variables | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.modules):
            raise ValueError(
                f"{len(self.names)} names for {len(self.modules)} blocks: give one or more blocks, each with a name"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"block names must differ, but {', '.join(twice)} occurs more than once: rename a block")

    @classmethod
    def of(cls, blocks: Mapping[str, nn.Module]) -> "Network":
        """A network from an ordered mapping of names to blocks."""
        return cls(tuple(blocks), tuple(blocks.values()))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(zip(self.names, self.modules, strict=True))

    @overload
    def __getitem__(self, index: slice) -> "Network": ...
    @overload
    def __getitem__(self, index: str) -> nn.Module: ...
    def __getitem__(self, index: slice | str) -> "Network | nn.Module":
        """`network[:4]` is a network of the first four blocks; `network["stem"]` is a block."""
        if isinstance(index, slice):
            return Network(self.names[index], self.modules[index], self.start)
        return self.modules[self.position(index)]

    def position(self, name: str) -> int:
        """The index of the block with this name.

        Raises:
            ValueError: no block has this name.
        """
        if name not in self.names:
            raise unknown("block", name, self.names)
        return self.names.index(name)

    @property
    def stages(self) -> tuple[str, ...]:
        """The name of the last block of each stage except the last stage: the default boundaries."""
        stage = [name.split("/")[0] for name in self.names]
        return tuple(name for i, name in enumerate(self.names[:-1]) if stage[i] != stage[i + 1])

    @property
    def is_transformer(self) -> bool:
        """True if the features between blocks are those of patches, which a block such as self-attention mixes.

        Such a block, also that of a mixer of linear layers, has the attribute `mixes_patches = True`.
        """
        return any(getattr(module, "mixes_patches", False) for module in self.modules)

    @property
    def class_tokens(self) -> int:
        """The number of class tokens before the patches, the attribute `class_tokens` of the first block; mostly 0.

        With class tokens the features between blocks are sequences (batch, 1, class tokens + patches, channels).
        """
        return max(getattr(module, "class_tokens", 0) for module in self.modules)

    def has_features(self, *, tokens: bool = False) -> bool:
        """True if the features between blocks are maps (batch, height, width, channels).

        A block with other features has the attribute `maps = False`.

        Args:
            tokens: True to accept sequences with class tokens too.
        """
        return (tokens and self.class_tokens > 0) or all(getattr(module, "maps", True) for module in self.modules)

    def check_maps(
        self, use: str, *, tokens: bool = False, instead: str = "a method on logits, such as end_to_end or kd"
    ) -> None:
        """Checks that the features between blocks are maps, see `has_features`.

        Args:
            use: the method or objective that needs maps, for the error's message.
            tokens: True to accept sequences with class tokens too.
            instead: what to use in its place, for the message.

        Raises:
            ValueError: the features are others.
        """
        if self.has_features(tokens=tokens):
            return
        name, module = next((name, module) for name, module in self if not getattr(module, "maps", True))
        raise ValueError(
            f"{use} needs maps{' or tokens' * tokens} between the blocks of a network, but block {name!r} "
            f"({type(module).__name__}) returns none: use a network with maps, such as a ResNet, vit_ti16 or vit_s16, "
            f"or {instead}"
        )

    def select(self, variables: Variables) -> Variables:
        """The variables of this network's blocks, from the variables of a network that contains these blocks."""
        return by_block({name: of_block(variables, name) for name in self.names})

    def check(self, variables: Mapping[str, Any], images: Float[Array, "batch *shape"] | jax.ShapeDtypeStruct) -> None:
        """Checks that the variables have the names and shapes of this network's variables.

        Args:
            variables: the variables to check.
            images: an array or a `jax.ShapeDtypeStruct`. Only shape and dtype matter.

        Raises:
            ValueError: a variable is missing, has another shape, or is unexpected. The error names the first one.
        """
        expected = flatten_dict(jax.eval_shape(self.init, jax.random.key(0), images), sep="/")
        given = flatten_dict(dict(variables), sep="/")
        for name, like in expected.items():
            if name not in given or given[name].shape != like.shape:
                found = f"has shape {given[name].shape}" if name in given else "is missing"
                raise ValueError(f"{name} {found}, expected {like.shape}: give the variables of this network")
        if more := sorted(given.keys() - expected.keys()):
            raise ValueError(f"{more[0]} is not a variable of this network: give the variables of this network")

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch *shape"] | jax.ShapeDtypeStruct) -> Variables:
        """New variables.

        Equal blocks share one compiled initialisation, so that a network of a thousand blocks starts in seconds.

        Args:
            rng: a key.
            images: an array or a `jax.ShapeDtypeStruct`. Only shape and dtype matter.
        """
        created: dict[str, Mapping[str, Any]] = {}
        x: Any = jax.ShapeDtypeStruct(images.shape, images.dtype)
        for (name, block), key in zip(self, jax.random.split(rng, len(self)), strict=True):
            created[name] = self._started(name, init_block(block, key, x))
            x = output_shape(block, created[name], x)
        return by_block(created)

    def _started(self, name: str, new: Mapping[str, Any]) -> Mapping[str, Any]:
        """The new variables of a block with the values of `start`, copied, because a step may donate them."""
        if self.start is None:
            return new
        flat = flatten_dict(dict(new), keep_empty_nodes=True)
        given = flatten_dict(of_block(self.start, name))
        return unflatten_dict({path: jnp.array(given[path], x.dtype) if path in given else x
                               for path, x in flat.items()})  # fmt: skip

    def features(
        self,
        variables: Variables,
        x: Float[Array, "batch *shape"],
        *,
        train: bool,
        remat: bool = False,
    ) -> tuple[dict[str, Array], Collection]:
        """`(outputs, batch statistics)`: the output of every block by name, in order. The last is the network's output.

        Args:
            variables: from `init`.
            x: a batch, such as normalised images (batch, height, width, channels).
            train: if True, batch normalisation uses the batch's statistics, and the returned statistics are updated.
                If False, it uses the given statistics, and they are returned unchanged.
            remat: if True, only the blocks' outputs are stored, and the backward pass recomputes each block.
        """
        features: dict[str, Array] = {}
        statistics: Collection = {}
        for name, block in self:
            call = partial(apply_block, block, train=train)
            x, own_statistics = (rematerialize(call) if remat else call)(of_block(variables, name), x)
            features[name] = x
            if own_statistics:
                statistics[name] = own_statistics
        return features, statistics

    def apply(
        self,
        variables: Variables,
        x: Float[Array, "batch *shape"],
        *,
        train: bool,
        remat: bool = False,
    ) -> tuple[Array, Collection]:
        """`(output, batch statistics)` of the network; the arguments are those of `features`."""
        features, statistics = self.features(variables, x, train=train, remat=remat)
        return features[self.names[-1]], statistics


def check_network(what: str, network: object) -> None:
    """Check that an argument is a network.

    Raises:
        ValueError: it is something else, such as a name.
    """
    way_out = "use a kd_local.networks.Network, such as create('resnet8', classes=10)"
    check_type(what, network, Network, way_out)
