"""Local learning as one function: it gives the same numbers without saving memory.

The step is the gradient of the sum of all losses, with `jax.lax.stop_gradient` at the cuts. No gradient crosses a cut,
so each module could finish and free its activations before the next one starts. But nothing in the function requires
this order. XLA schedules many forward passes first, and stores the activations of many modules at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program, State
from kd_local.local import CutNetwork
from kd_local.networks import Variables, by_block, of_block
from kd_local.state import Part, new_part, update_part

NAME = "network"


@dataclass(frozen=True)
class SummedLosses:
    """Trains all modules of a cut network in one program, with the gradient of the sum of their losses.

    It is a reference for measurements. Train with `kd_local.local.ContSup`, whose steps give the same numbers.
    """

    cut_network: CutNetwork
    optimizer: optax.GradientTransformation

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new state: a part with an entry per module, and the untrained parts of auxiliary networks.

        Only the shape and dtype of `images` matter.
        """
        variables = self.cut_network.init(rng, images)
        untrained = {name: variables.pop(name) for name in self._untrained}
        return {NAME: new_part(by_block(variables), self.optimizer), **untrained}

    def programs(self) -> tuple[Program, ...]:
        """One program for the whole step. Untrained parts keep their values: a moving average does not move."""
        return (
            Program(
                name=NAME,
                key=self,
                function=partial(_train_all, self),
                reads=("images", "labels"),
                frozen=self._untrained,
            ),
        )

    @property
    def _untrained(self) -> tuple[str, ...]:
        return tuple(part.program.name for module in self.cut_network.modules for part in module.after)

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The network's logits in evaluation mode, with contexts."""
        return self.cut_network.logits(by_module(state[NAME]), images)

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """Empty: the reference needs only the network's logits."""
        return {}

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters of the blocks and of the context networks."""
        return {
            name: {key: value for key, value in params.items() if key == "blocks" or key.startswith("context")}
            for name, params in state[NAME]["params"].items()
        }

    @property
    def deployed_program(self) -> None:
        """None: the program's only metric is the sum of the losses."""
        return None


def by_module(part: Mapping[str, Any]) -> dict[str, Variables]:
    """The variables of each module by its name, from the part of the state or from the part's variables."""
    return {name: of_block(part, name) for name in part["params"]}


def _train_all(
    method: SummedLosses,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[()], Metrics]:
    images, labels = tensors
    untrained = dict(zip(method.programs()[0].frozen, frozen, strict=True))

    def objective(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        outputs = method.cut_network.losses({**by_module({**part, "params": params}), **untrained}, images, labels)
        total = jnp.stack(list(outputs.losses.values())).sum()
        # Untrained parts, such as a teacher, keep their statistics.
        return total, ({**part["batch_stats"], **outputs.batch_stats}, {"loss": total})

    part, _, metrics = update_part(part, method.optimizer, objective)
    return part, (), metrics
