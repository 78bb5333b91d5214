"""Mixture paths: the first stages of one network, a bridge, and the later stages of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kd_local.distill.bridge import Bridge
from kd_local.distill.objective import Pair
from kd_local.distill.staged import StagedNetwork
from kd_local.networks import Collection, apply_block


@dataclass(frozen=True)
class MixturePath:
    """A path that changes the network after a stage.

    >>> MixturePath(switch=1, stages=4, to_teacher=True).name
    '1100'

    Attributes:
        switch: the last stage of the first network.
        stages: the number of stages of each network.
        to_teacher: True if the student's stages come first.
    """

    switch: int
    stages: int
    to_teacher: bool

    @property
    def name(self) -> str:
        """A digit for each stage, 0 for the teacher's and 1 for the student's: `1100`."""
        first, then = "10" if self.to_teacher else "01"
        return first * (self.switch + 1) + then * (self.stages - self.switch - 1)

    @property
    def bridge(self) -> str:
        """The name of its bridge."""
        return bridge_name(self.switch, self.to_teacher)


def mixture_paths(stages: int) -> tuple[MixturePath, ...]:
    """All paths with a bridge after stage 1 or later, before the last stage; those to the student come first.

    >>> [path.name for path in mixture_paths(4)]
    ['0011', '0001', '1100', '1110']
    """
    return tuple(
        MixturePath(switch, stages, to_teacher) for to_teacher in (False, True) for switch in range(1, stages - 1)
    )


def sample(rng: PRNGKeyArray, count: int, paths: int) -> Bool[Array, " paths"]:
    """True for `count` of the paths, drawn without replacement."""
    return jax.random.permutation(rng, paths) < count


def bridge_name(stage: int, to_teacher: bool) -> str:
    """The name of a bridge in the variables: `stage1_to_teacher`."""
    return f"stage{stage}_to_{'teacher' if to_teacher else 'student'}"


def bridges_to(
    target: StagedNetwork, features: Sequence[Float[Array, "n _ _ _"] | jax.ShapeDtypeStruct], to_teacher: bool
) -> dict[str, Bridge]:
    """The bridges into a network, by name, one for each stage after the first; `features` are those of the network."""
    return {
        bridge_name(stage, to_teacher): Bridge(tuple(features[stage].shape[1:]), relu=target.rectified(stage))
        for stage in range(1, target.count)
    }


def follow(
    path: MixturePath, pair: Pair, bridge: Bridge, trained: Mapping[str, Any], fixed: Mapping[str, Any]
) -> tuple[dict[int, Array], Array, Collection]:
    """Applies a path's stages after its bridge, and in a path to the student the bridge too.

    Args:
        path: the path.
        pair: student and teacher.
        bridge: the bridge; in a path to the teacher it is not used.
        trained: a path to the teacher needs `features`, the student's through the bridge. A path to the student needs
            `bridge`, the parameters of the bridge, and `params`, those of the student's blocks.
        fixed: `statistics` are the running statistics of the path and, to the student, of the bridge. A path to the
            teacher also needs the teacher's `variables`. It uses their statistics in evaluation mode if it has none of
            its own. A path to the student also needs `features`, the teacher's.

    Returns:
        `(features by stage, logits, statistics after the step)`.
    """
    statistics = fixed["statistics"]
    if path.to_teacher:
        own, train = fixed["variables"], path.name in statistics
        if train:
            own = {**own, "batch_stats": statistics[path.name]}
        features, logits, of_path = StagedNetwork(pair.teacher).after(
            path.switch, own, trained["features"], train=train
        )
        updated = {path.name: of_path} if train else {}
    else:
        of_bridge = {"params": trained["bridge"], "batch_stats": statistics[path.bridge]}
        x, of_bridge = apply_block(bridge, of_bridge, fixed["features"], train=True)
        own = {"params": trained["params"], "batch_stats": statistics[path.name]}
        features, logits, of_path = StagedNetwork(pair.student).after(path.switch, own, x, train=True)
        updated = {path.bridge: of_bridge, path.name: of_path}
    return dict(enumerate(features, start=path.switch + 1)), logits, updated
