"""A network as stages between features that those of another network can replace."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from kd_local.distill.objective import Outputs
from kd_local.distill.stages import rectified
from kd_local.distill.trained_blocks import after_stage
from kd_local.models.layers import global_average_pool
from kd_local.models.vgg import ConvBlock
from kd_local.networks import Collection, Network, Variables, of_block


@dataclass(frozen=True)
class StagedNetwork:
    """Stages 0 (the stem, or VGG's first stage) to n - 1, each from the features of the stage before, and a classifier.

    The features of a stage are the output of its last block, with two exceptions. Those of VGG are taken before the
    block's ReLU. Those of the last stage contain the layers of the head that come before its last ReLU: the final
    normalisation of a Wide ResNet, the last convolution of MobileNetV2 and, with its ReLU, of ShuffleNetV2. So
    features follow a ReLU in ResNets, ShuffleNets and MobileNetV1, and in no other network.

    Reference: Liu et al., "Function-consistent feature distillation" (ICLR 2023, arXiv 2304.11832), and its authors'
    code for ResNets, Wide ResNets and VGG. For the last convolution of MobileNetV2 and ShuffleNetV2, which the text
    does not mention, the rule is that of Wide ResNets.
    """

    network: Network

    @property
    def count(self) -> int:
        """The number of stages n."""
        return len(self.network.stages)

    def rectified(self, stage: int) -> bool:
        """True if the features of a stage follow a ReLU."""
        return rectified(self.network, stage) and not self._rectifies_inputs

    def features(self, outputs: Outputs, variables: Variables, *, train: bool) -> tuple[Float[Array, "n _ _ _"], ...]:
        """The features of all stages, from the network's outputs in the same mode."""
        features = outputs.preactivations if self._rectifies_inputs else outputs.features
        return (*features[:-1], self._through_head(variables, features[-1], train=train)[0])

    def feature_shapes(self, outputs: Outputs) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the features, from those of the network's outputs."""
        features, head = outputs.features, self.network.modules[-1]
        if not hasattr(head, "before_relu"):
            return features
        init = partial(head.init_with_output, jax.random.key(0), train=False, method="before_relu")
        return (*features[:-1], jax.eval_shape(init, features[-1])[0])

    def after(
        self, stage: int, variables: Variables, x: Float[Array, "n _ _ _"], *, train: bool
    ) -> tuple[list[Array], Array, Collection]:
        """The stages after a stage, for features `x` in place of its own.

        Args:
            stage: the stage whose features are replaced.
            variables: those of the later blocks; others are ignored.
            x: features in the space of that stage.
            train: the mode, see `Network.features`.

        Returns:
            `(features of the later stages, logits, statistics after the step, by block)`.
        """
        found: list[Array] = []
        statistics: Collection = {}
        for later in range(stage + 1, self.count):
            x, updated = self._stage(later, variables, x, train=train)
            found.append(x)
            statistics |= updated
        head, own = self.network.modules[-1], of_block(variables, self.network.names[-1])
        if hasattr(head, "before_relu"):
            rectified_map: Any = head.apply(own, x, method="rectify")
            pooled: Any = global_average_pool(rectified_map)
        else:
            pooled = head.apply(own, nn.relu(x) if self._rectifies_inputs else x, train=False, method="pool")
        logits: Any = head.apply(own, pooled, method="classify")
        return found, logits, statistics

    @property
    def _rectifies_inputs(self) -> bool:
        return isinstance(self.network.modules[0], ConvBlock)

    def _stage(self, stage: int, variables: Variables, x: Array, *, train: bool) -> tuple[Array, Collection]:
        blocks = after_stage(self.network, stage - 1, stage)
        if self._rectifies_inputs:
            x = nn.relu(x)
            blocks = replace(blocks, modules=(*blocks.modules[:-1], blocks.modules[-1].clone(relu=False)))
        x, statistics = blocks.apply(blocks.select(variables), x, train=train)
        if stage == self.count - 1:
            x, own = self._through_head(variables, x, train=train)
            statistics = {**statistics, **own}
        return x, statistics

    def _through_head(self, variables: Variables, x: Array, *, train: bool) -> tuple[Any, Collection]:
        """The layers of the head before its last ReLU, and this ReLU too if the features follow one."""
        name, head = self.network.names[-1], self.network.modules[-1]
        if not hasattr(head, "before_relu"):
            return x, {}
        own, statistics = of_block(variables, name), {}
        if train:
            before, updated = head.apply(own, x, train=True, method="before_relu", mutable=["batch_stats"])
            statistics = {name: updated["batch_stats"]}
        else:
            before = head.apply(own, x, train=False, method="before_relu")
        return nn.relu(before) if self.rectified(self.count - 1) else before, statistics


def pooled_after_relu(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """The mean over the map after a ReLU: the input of a classifier."""
    return global_average_pool(nn.relu(x))
