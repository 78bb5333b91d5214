"""Local heads: small classifiers on the outputs of all modules but the last. A local loss trains each head.

Reference: Yu et al., arXiv 2312.07636, after InfoPro (Wang et al., ICLR 2021), and see `mlp_heads`.
"""

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.choices.local import FEATURE_WIDTH, HEADS
from kd_local.errors import unknown
from kd_local.local.mlp_heads import PooledLinear, PooledMLP
from kd_local.local.wide_mlp_head import WideMLPHead
from kd_local.models.layers import ConvNorm, DType, Linear, global_average_pool

_WIDEST = 64


class LocalHead(nn.Module):
    """A head of InfoPro and ContSup, `NcMf`: N 3x3 convolutions, global average pooling and M linear layers.

    Each convolution has batch normalisation and ReLU. If the input has fewer than 64 channels, the first convolution
    doubles the channels and halves the resolution. All other convolutions keep channels and resolution.

    Attributes:
        kind: such as `1c2f`, one of `HEADS`.
        outputs: units of the last linear layer.
        width: multiplies the channels of the convolutions and the hidden units.
        feature_width: units of each linear layer before the last, which is followed by ReLU.
        dtype: compute dtype.
    """

    kind: str
    outputs: int
    width: float = 1.0
    feature_width: int = FEATURE_WIDTH
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        convolutions, linears = int(self.kind[0]), int(self.kind[2])
        narrow = x.shape[-1] < _WIDEST
        features = int(x.shape[-1] * (2 if narrow else 1) * self.width)
        for i in range(convolutions):
            stride = 2 if narrow and i == 0 else 1
            x = ConvNorm(features, stride=stride, dtype=self.dtype, name=f"conv{i}")(x, train=train)
        x = global_average_pool(x)
        for i in range(linears - 1):
            x = nn.relu(Linear(int(self.feature_width * self.width), dtype=self.dtype, name=f"linear{i}")(x))
        return Linear(self.outputs, dtype=self.dtype, name=f"linear{linears - 1}")(x)


_OF_POOLED_FEATURES: Mapping[str, type[PooledMLP | WideMLPHead | PooledLinear]] = {
    "dgl": PooledMLP,
    "dgl_wide": WideMLPHead,
    "pool": PooledLinear,
}


def local_head(
    kind: str, *, outputs: int, width: float = 1.0, feature_width: int = FEATURE_WIDTH, dtype: DType = None
) -> nn.Module:
    """A local head: a `LocalHead`, or for `dgl`, `dgl_wide` and `pool` a `PooledMLP`, `WideMLPHead` or `PooledLinear`.

    Args:
        kind: one of `HEADS`.
        outputs: units of the last linear layer.
        width: multiplies the channels and the hidden units, of `pool` the features.
        feature_width: hidden units of a `LocalHead`; other kinds ignore it.
        dtype: compute dtype.

    Raises:
        ValueError: the kind is not one of `HEADS`.
    """
    if kind not in HEADS:
        raise unknown("head", kind, HEADS)
    if kind in _OF_POOLED_FEATURES:
        return _OF_POOLED_FEATURES[kind](outputs, width, dtype)
    return LocalHead(kind, outputs, width, feature_width, dtype)
