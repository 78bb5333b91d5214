"""The head of MAN++ without reconstruction, `dgl_wide`: a wide variant of DGL's pooled head.

Reference: Su et al., MAN++ (IEEE TPAMI 2026, arXiv 2507.16279); DGL (Belilovsky et al., ICML 2020).
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.layers import ConvNorm, DType, Linear, average_pool_to, global_average_pool
from kd_local.models.normalization import BatchNorm


class WideMLPHead(nn.Module):
    """Average pooling to 8x8, three 1x1 convolutions, global average pooling, four linear layers.

    The convolutions have 128 channels, the hidden linear layers 512 units and a bias. Batch normalisation and ReLU
    follow each layer but the last. Maps smaller than 8x8 keep their size; the authors' code repeats their pixels.

    Attributes:
        outputs: units of the last linear layer.
        width: multiplies channels and hidden units.
        dtype: compute dtype.
    """

    outputs: int
    width: float = 1.0
    dtype: DType = None
    channels: ClassVar[int] = 128
    hidden: ClassVar[int] = 512
    size: ClassVar[int] = 8

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        x = average_pool_to(x, (min(self.size, x.shape[1]), min(self.size, x.shape[2])))
        for i in range(3):
            x = ConvNorm(int(self.channels * self.width), kernel_size=1, dtype=self.dtype, name=f"conv{i}")(
                x, train=train
            )
        x = global_average_pool(x)
        for i in range(3):
            x = Linear(int(self.hidden * self.width), dtype=self.dtype, name=f"linear{i}")(x)
            x = BatchNorm(dtype=self.dtype, name=f"norm{i}")(x[:, None, None], train=train)[:, 0, 0]
            x = nn.relu(x)
        return Linear(self.outputs, dtype=self.dtype, name="linear3")(x)
