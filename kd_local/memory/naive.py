"""The obvious form of local learning in JAX, which computes the right numbers and loses the memory saving.

One function for the whole step, with `jax.lax.stop_gradient` at the cuts, and the gradient of the sum of all losses.
No gradient flows back through a cut, so that every module could be finished, and its activations let go of, before
the next one starts. But nothing in the function says so: XLA sees one computation and schedules it as it likes, and
what it likes is to run much of the forward passes first, with the activations of many modules kept at once.
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
    """Trains all modules of a cut network in one program, by the gradient of the sum of their losses.

    A reference to be measured, not a way to train: train with `kd_local.local.ContSup`, whose steps give the same
    numbers.
    """

    cut_network: CutNetwork
    optimizer: optax.GradientTransformation

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A fresh state of one part, in which the modules stand by their names; of `images` only shape and dtype
        count."""
        return {NAME: new_part(by_block(self.cut_network.init(rng, images)), self.optimizer)}

    def programs(self) -> tuple[Program, ...]:
        """One program for the whole step."""
        return (
            Program(
                name=NAME,
                key=self,
                function=partial(_train_all, self),
                reads=("images", "labels"),
            ),
        )

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The network's logits in evaluation mode, contexts supplied."""
        return self.cut_network.logits(by_module(state[NAME]), images)

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """None: as a reference it is not asked for more than the network's answer."""
        return {}

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters of blocks and context networks."""
        return {
            name: {key: value for key, value in params.items() if key not in ("head", "decoder")}
            for name, params in state[NAME]["params"].items()
        }

    @property
    def deployed_program(self) -> None:
        """None: the program's only metric is the sum of the losses."""
        return None


def by_module(part: Mapping[str, Any]) -> dict[str, Variables]:
    """The variables of all modules, as a cut network takes them, from a part or from its variables."""
    return {name: of_block(part, name) for name in part["params"]}


def _train_all(
    method: SummedLosses,
    part: Part,
    frozen: tuple[()],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[()], Metrics]:
    images, labels = tensors

    def objective(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        outputs = method.cut_network.losses(by_module({**part, "params": params}), images, labels)
        total = jnp.stack(list(outputs.losses.values())).sum()
        return total, (outputs.batch_stats, {"loss": total})

    part, _, metrics = update_part(part, method.optimizer, objective)
    return part, (), metrics
