"""ContSup: greedy local learning with context supply, one compiled step a module.

Reference: Yu et al., "Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply" (arXiv
2312.07636). With context R0 it is plain greedy local learning (DGL, Belilovsky et al., ICML 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program, State
from kd_local.local.cut import CutNetwork, LocalModule
from kd_local.state import Part, new_part, update_part


@dataclass(frozen=True)
class ContSup:
    """Trains each module of a cut network by its own loss, one program a module."""

    cut: CutNetwork
    optimizer: optax.GradientTransformation

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A fresh state, a part for each module; of `images` only shape and dtype count."""
        return {name: new_part(variables, self.optimizer) for name, variables in self.cut.init(rng, images).items()}

    def programs(self) -> tuple[Program, ...]:
        """A program for each module; modules that are alike share one executable."""
        return tuple(
            Program(
                name=module.name,
                key=(module, self.optimizer),
                function=partial(_train_module, module, self.optimizer),
                reads=(*module.reads, "labels"),
                writes=module.writes,
            )
            for module in self.cut.modules
        )

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The network's logits in evaluation mode, contexts supplied."""
        variables = {
            name: {"params": part["params"], "batch_stats": part["batch_stats"]} for name, part in state.items()
        }
        return self.cut.logits(variables, images)

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters of blocks and context networks; local heads stay behind."""
        return {
            name: {key: value for key, value in part["params"].items() if key != "head"} for name, part in state.items()
        }


def _train_module(
    module: LocalModule,
    optimizer: optax.GradientTransformation,
    part: Part,
    frozen: tuple[()],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
) -> tuple[Part, tuple[jax.Array, ...], Metrics]:
    *read, labels = tensors

    def objective(params: Any) -> tuple[Array, tuple[Any, tuple[Metrics, tuple[Array, ...]]]]:
        variables = {"params": params, "batch_stats": part["batch_stats"]}
        metrics, written, _, statistics = module.evaluate(variables, read, labels, train=True)
        return metrics["loss"], (statistics, (metrics, written))

    part, _, (metrics, written) = update_part(part, optimizer, objective)
    return part, written, metrics
