"""HPFF: each module is trained alone by a weak loss, and each pair of neighbouring modules by a strong one.

Reference: Su et al., "HPFF: Hierarchical locally supervised learning with patch feature fusion" (ECCV 2024, arXiv
2407.05638).
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.auxiliaries.head import Head
from kd_local.local.auxiliary import Boundary
from kd_local.local.decoders import Decoder, reconstruction_loss
from kd_local.local.module import Reconstruction
from kd_local.local.pair import PairAttachment
from kd_local.local.partition import man_number
from kd_local.models.layers import DType
from kd_local.ranges import Flag, Number

WEIGHT = Number(0, 1e6, note="0 leaves the term out")


def patches(x: Float[Array, "batch h w c"], n: int) -> Float[Array, "batch patches hp wp c"]:
    """The n x n patches of a map, row by row: of ceil(h / n) x ceil(w / n) pixels, evenly spaced. They overlap where n
    does not divide the size."""
    rows, columns = (_windows(size, n) for size in x.shape[1:3])
    each = [x[:, top : top + rows[1], left : left + columns[1]] for top in rows[0] for left in columns[0]]
    return jnp.stack(each, axis=1)


def _windows(size: int, n: int) -> tuple[tuple[int, ...], int]:
    """`(starts, length)` of n windows that cover a size.

    >>> _windows(8, 2), _windows(7, 2)
    (((0, 4), 4), ((0, 3), 4))
    """
    length = -(-size // n)
    return tuple(i * (size - length) // max(n - 1, 1) for i in range(n)), length


class PatchDecoder(nn.Module):
    """Reconstructs each patch of an image from the same patch of the features. Returns the logits of pixel values.

    Attributes:
        n: the patches of a side.
        own: True: a decoder for each patch. False: one decoder for all.
        width: see `Decoder`.
        dtype: compute dtype.
    """

    n: int
    own: bool
    width: int = 12
    dtype: DType = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch h w c"], images: Float[Array, "batch hi wi ci"], *, train: bool
    ) -> Float[Array, "batch_patches hp wp ci"]:
        parts, targets = patches(features, self.n), patches(images, self.n)
        if not self.own:
            return Decoder(self.width, self.dtype, name="decoder0")(_joined(parts), _joined(targets), train=train)
        decoded = [
            Decoder(self.width, self.dtype, name=f"decoder{i}")(parts[:, i], targets[:, i], train=train)
            for i in range(self.n**2)
        ]
        return _joined(jnp.stack(decoded, axis=1))


class PatchHead(nn.Module):
    """The mean of the outputs of one head for all n x n patches of a map.

    Attributes:
        head: the head.
        n: the patches of a side.
    """

    head: nn.Module
    n: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        parts = patches(x, self.n)
        outputs = self.head(_joined(parts), train=train)
        return outputs.reshape(*parts.shape[:2], -1).mean(axis=1)


def _joined(x: Float[Array, "batch patches *shape"]) -> Float[Array, "batch_patches *shape"]:
    """The patches of an image side by side in the batch, so that a slice of the batch has whole images."""
    return x.reshape(-1, *x.shape[2:])


@dataclass(frozen=True)
class PatchReconstruction:
    """The binary cross entropy of reconstructed patches. See `kd_local.local.pair.PairReconstruction`.

    Attributes:
        network: the decoders.
        added: True: the sum of the patches' losses. False: their mean.
    """

    network: PatchDecoder
    added: bool

    def loss(
        self, logits: Float[Array, "batch_patches hp wp c"], images: Float[Array, "batch h w c"]
    ) -> Float[Array, ""]:
        """The loss of the logits, for images in [0, 1]; each patch's loss is the mean over its pixels, in nats."""
        loss = reconstruction_loss(logits, _joined(patches(images, self.network.n)))
        return loss * self.network.n**2 if self.added else loss


@dataclass(frozen=True, kw_only=True)
class HPFF:
    """The rule of HPFF. See `PairRule`.

    With the pairs i = 1, ..., K - 1 of `kd_local.local.pair`, z = M_i(y) and heads of their own for x and z:

        loss_i = w_x CE(head_x(x)) + w_y (a_i PFF(z) + b_i CE(head_z(z))), i < K - 1,
        loss_i = w_x CE(x) + w_y CE(z), i = K - 1; x and z are the network's logits,

    with a_i and b_i interpolated linearly at i / (K' - 2) between their values at 0 and 1. K' is the K of the paper's
    tables, see `man_number`. At K' = 8, the last pair but one has a = b = 0. Without a decoder, a_i = 0 and b_i = 1
    (the variant of DGL). The paper's heads are 2c2f, and `man_boundaries` has its cuts.

    PFF(z) cuts features and image into n x n patches. In the authors' code, each patch has a decoder of its own, which
    resizes the features to the patch's size, and the losses are added; the head reads the whole map. The paper
    describes one auxiliary network for all patches, with averaged outputs: here one decoder, whose losses are averaged,
    and the head, whose logits are averaged.

    Attributes:
        weight_x: w_x, the weight of the loss of a module alone, 0 or larger.
        weight_y: w_y, the weight of the loss of a pair, 0 or larger.
        reconstruction_first, reconstruction_last: a at ratio 0 and at ratio 1, used with a decoder.
        head_first, head_last: b at ratio 0 and at ratio 1, used with a decoder.
        patches: n, the patches of a side, 1 or more.
        faithful: True: as the authors' code. False: as the paper describes it.
    """

    weight_x: Annotated[float, WEIGHT] = 0.001
    weight_y: Annotated[float, WEIGHT] = 0.999
    reconstruction_first: Annotated[float, WEIGHT] = 5.0
    reconstruction_last: Annotated[float, WEIGHT] = 0.0
    head_first: Annotated[float, WEIGHT] = 0.5
    head_last: Annotated[float, WEIGHT] = 0.0
    patches: Annotated[int, Number(1, 16, whole=True, example=2)] = 2
    faithful: Flag = True

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if not self.weight_x + self.weight_y:
            raise ValueError("weight_x and weight_y are 0, so that nothing would train: set one")

    @property
    def last_weights(self) -> tuple[float, float]:
        """Those of the two cross entropies."""
        return self.weight_x, self.weight_y

    def at(self, boundary: Boundary, decoder: Reconstruction | None) -> PairAttachment:
        """The head and the decoder of the pair whose second module ends at a boundary.

        Raises:
            ValueError: a hyper-parameter of decoders differs from its default, and there is no decoder.
        """
        head: Any = boundary.head if self.faithful else PatchHead(boundary.head, self.patches)
        if decoder is None:
            self._check_unused()
            return PairAttachment(Head(head), (self.weight_x, self.weight_y, 0.0))
        last = max(man_number(boundary.network, boundary.boundaries), len(boundary.boundaries) + 1) - 2
        ratio = boundary.number / last
        a = self.reconstruction_first * (1 - ratio) + self.reconstruction_last * ratio
        b = self.head_first * (1 - ratio) + self.head_last * ratio
        weights = self.weight_x, self.weight_y * b, self.weight_y * a
        network = PatchDecoder(self.patches, self.faithful, decoder.decoder.width, boundary.dtype)
        return PairAttachment(Head(head), weights, PatchReconstruction(network, added=self.faithful))

    def _check_unused(self) -> None:
        used = ["weight_x", "weight_y", "faithful", *([] if self.faithful else ["patches"])]
        for field in fields(self):
            if field.name not in used and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}, but there is no decoder: cut with a decoder, or "
                    f"leave {field.name} out"
                )
