"""Context supply: small networks M add contexts (earlier tensors) to a module's input.

    h^c_{l-1} = h_{l-1} + sum over the contexts c of module l of M(c)

Reference: Yu et al., "Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply" (arXiv
2312.07636). Here h_{l-1} is the output of the module before module l, and h^c_{l-1} is the input of module l's blocks.

Not optimal yet: the paper's image encoder convolves at full resolution at every boundary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.choices.local import read_context
from kd_local.models.layers import ConvNorm, DType, average_pool_to
from kd_local.networks import Collection, apply_block, of_block
from kd_local.rematerialization import rematerialize_in_turn

IMAGES = "images"


def input_name(module: int) -> str:
    """The name of the tensor h^c: the module's input with its contexts added."""
    return f"supplied{module}"


def output_name(module: int) -> str:
    """The name of the tensor h: the module's output."""
    return f"features{module}"


@dataclass(frozen=True)
class Context:
    """The rule that selects a module's contexts.

    Attributes:
        recent: the n of Rn: the inputs h^c of the n modules before are contexts.
        image: True for E: the image is a context.
    """

    recent: int
    image: bool

    @classmethod
    def parse(cls, name: str) -> "Context":
        """The rule with one of the paper's names: R0, E, R1, R1E, or Rn / RnE with n >= 1.

        >>> Context.parse("R2E")
        Context(recent=2, image=True)
        >>> Context.parse("R2E").sources(3)
        ('images', 'supplied2', 'supplied1')

        Raises:
            ValueError: the name has another form.
        """
        recent, image = read_context(name)
        return cls(recent=recent, image=image)

    def sources(self, module: int) -> tuple[str, ...]:
        """Names of the tensors that are a module's contexts: the image, then inputs of earlier modules, latest first.

        Module 0 has no context. The image is listed once, although it is also the input of module 0.

        Args:
            module: the module's number, from 0.
        """
        if module == 0:
            return ()
        sources = [IMAGES] if self.image else []
        for previous in range(module - 1, max(module - 1 - self.recent, -1), -1):
            if previous > 0:
                sources.append(input_name(previous))
            elif not self.image:
                sources.append(IMAGES)
        return tuple(sources)

    def networks(
        self, module: int, *, image_encoder: str = "full", width: float = 1.0, dtype: DType = None
    ) -> tuple[nn.Module, ...]:
        """The context networks of a module, one for each of its sources.

        Args:
            module: the module's number, from 0.
            image_encoder: one of `IMAGE_ENCODERS`.
            width: multiplies the image encoder's channels; `aux_width` of `cut`.
            dtype: compute dtype of the networks.
        """
        channels = int(ImageEncoder.width * width)
        return tuple(
            ImageEncoder(channels, image_encoder == "pooled", dtype)
            if self.image and i == 0
            else FeatureEncoder(dtype=dtype)
            for i in range(len(self.sources(module)))
        )


class ImageEncoder(nn.Module):
    """The context network M of the image (E): two convolutions, then average pooling to the boundary's size.

    The convolutions are 3x3 (3 -> `width` -> C channels), with bias, batch normalisation and ReLU, at the image's full
    resolution. With `pool_first`, an addition to the paper, pooling comes before the convolutions. All encoders of
    ResNet-32 with K=16 then cost 28 % of the network's multiply-adds instead of 89 %.
    """

    width: int = 12
    pool_first: bool = False
    dtype: DType = None
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2")

    @nn.compact
    def __call__(
        self, context: Float[Array, "batch hc wc cc"], like: Float[Array, "batch h w c"], *, train: bool
    ) -> Float[Array, "batch h w c"]:
        size = (like.shape[1], like.shape[2])
        x = average_pool_to(context, size) if self.pool_first else context
        x = ConvNorm(self.width, use_bias=True, dtype=self.dtype, name="conv1")(x, train=train)
        x = ConvNorm(like.shape[-1], use_bias=True, dtype=self.dtype, name="conv2")(x, train=train)
        return average_pool_to(x, size)


class FeatureEncoder(nn.Module):
    """The context network M of an earlier input (Rn): a 1x1 convolution, then average pooling to the boundary's size.

    The convolution has bias, batch normalisation and ReLU, at the source's resolution.
    """

    dtype: DType = None
    layers: ClassVar[tuple[str, ...]] = ("conv",)

    @nn.compact
    def __call__(
        self, context: Float[Array, "batch hc wc cc"], like: Float[Array, "batch h w c"], *, train: bool
    ) -> Float[Array, "batch h w c"]:
        x = ConvNorm(like.shape[-1], kernel_size=1, use_bias=True, dtype=self.dtype, name="conv")(context, train=train)
        return average_pool_to(x, (like.shape[1], like.shape[2]))


def supply(
    networks: Sequence[nn.Module],
    variables: Sequence[Mapping[str, Any]],
    contexts: Sequence[Float[Array, "batch _ _ _"]],
    like: Float[Array, "batch h w c"],
    *,
    train: bool,
    remat: int | None = None,
) -> list[tuple[Float[Array, "batch h w c"], Collection]]:
    """Applies context networks to their contexts. Returns `(output, batch statistics)` of each network.

    With `remat=n`, the backward pass recomputes one network after another, the image encoder last, and of each network
    at most `n` output channels at a time, in groups of equal size. The results are the same, because the last
    convolution, batch normalisation, ReLU and pooling treat each output channel independently.

    Args:
        networks: from `Context.networks`.
        variables: the variables of each network.
        contexts: the input of each network.
        like: the module's input; every output has its shape.
        train: if True, batch normalisation uses the batch's statistics and updates the running ones.
        remat: the most output channels that are recomputed at a time; None: nothing is recomputed.
    """
    if remat is None:
        return [
            apply_block(network, own, context, like, train=train)
            for network, own, context in zip(networks, variables, contexts, strict=True)
        ]

    def encode(i: int, own: Mapping[str, Any], like: Array, *contexts: Array) -> tuple[Array, Collection]:
        network = networks[i]
        if getattr(network, "pool_first", False):
            return apply_block(network, own, contexts[i], like, train=train)
        return _encode_in_groups(network, own, contexts[i], like, remat, train=train)

    each = [partial(encode, i) for i in range(len(networks))]
    return list(rematerialize_in_turn(*each)(tuple(variables), like, *contexts)) if each else []


def _encode_in_groups(
    network: Any, variables: Mapping[str, Any], x: Array, like: Array, channels: int, *, train: bool
) -> tuple[Array, Collection]:
    """The encoder with its last layer in a loop over groups of output channels, the last axis of all its arrays."""

    def apply(variables: Any, x: Array) -> tuple[Array, Collection]:
        size, _, _, features = variables["params"]["conv"]["kernel"].shape
        convolution = ConvNorm(features, kernel_size=size, use_bias=True, dtype=network.dtype)
        return apply_block(convolution, variables, x, train=train)

    def group(variables: Any, x: Array) -> tuple[Array, Collection]:
        output, statistics = apply(variables, x)
        return average_pool_to(output, (like.shape[1], like.shape[2])), statistics

    *first, last = network.layers
    statistics: Collection = {}
    for name in first:
        x, statistics[name] = apply(of_block(variables, name), x)
    features = like.shape[-1]
    count = next(n for n in range(1, features + 1) if features % n == 0 and features // n <= channels)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], count, -1), -2, 0), of_block(variables, last))
    if count <= 2:  # a loop of two needs more memory on a GPU: it stacks the outputs
        parts = tuple(jax.tree.map(lambda x, i=i: x[i], split) for i in range(count))
        each = rematerialize_in_turn(*[group] * count)(parts, x)
        output, statistics[last] = jax.tree.map(lambda *x: jnp.concatenate(x, -1), *each)
        return output, statistics
    # The backward pass of the loop is another loop, so no compiler merges the recomputation with the first computation.
    groups = jax.lax.map(jax.checkpoint(partial(group, x=x), prevent_cse=False), split)
    output, statistics[last] = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1), groups)
    return output, statistics
