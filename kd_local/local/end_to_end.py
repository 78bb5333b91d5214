"""End-to-end training by back-propagation, the baseline of local learning."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program, State
from kd_local.errors import check_type
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.networks import Network, Variables, check_network
from kd_local.state import Part, check_optimizer, new_part, update_part, variables_of

NAME = "network"


@dataclass(frozen=True)
class EndToEnd:
    """Trains a whole network with the cross entropy of its logits, as one program.

    >>> from kd_local.models import create
    >>> [program.name for program in EndToEnd(create("resnet8", classes=10), optax.sgd(0.1)).programs()]
    ['network']

    Attributes:
        network: the network.
        optimizer: updates all parameters.
        remat: if True, only the blocks' outputs are stored, and the backward pass recomputes each block. This needs
            less memory and more time (gradient checkpointing; Chen et al., arXiv 1604.06174).
        task_loss: the cross entropy of the labels.

    Raises:
        ValueError: an argument has another type.
    """

    network: Network
    optimizer: optax.GradientTransformation
    remat: bool = False
    task_loss: TaskLoss = PLAIN

    def __post_init__(self) -> None:
        check_network("network", self.network)
        check_optimizer(self.optimizer)
        check_type("task_loss", self.task_loss, TaskLoss, "use TaskLoss(label_smoothing=0.1), or leave it out")

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new state with one part. Only the shape and dtype of `images` matter."""
        return {NAME: new_part(self.network.init(rng, images), self.optimizer)}

    def programs(self) -> tuple[Program, ...]:
        """One program for the whole step."""
        return (
            Program(
                name=NAME,
                key=self,
                function=partial(_train_network, self),
                reads=("images", "labels"),
            ),
        )

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The network's logits in evaluation mode."""
        return self.network.apply(self.network_variables(state), images, train=False)[0]

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """No logits: the network has no other classifiers."""
        return {}

    def deployed(self, state: State) -> Mapping[str, Any]:
        """All parameters."""
        return state[NAME]["params"]

    @property
    def deployed_program(self) -> str:
        """The name of the only program."""
        return NAME

    def network_variables(self, state: State) -> Variables:
        """The network's variables."""
        return variables_of(state[NAME])


def _train_network(
    method: EndToEnd,
    part: Part,
    frozen: tuple[()],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[()], Metrics]:
    images, labels = tensors

    def objective(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        variables = {"params": params, "batch_stats": part["batch_stats"]}
        logits, statistics = method.network.apply(variables, images, train=True, remat=method.remat)
        metrics = method.task_loss(logits, labels)
        return metrics["loss"], (statistics, metrics)

    part, _, metrics = update_part(part, method.optimizer, objective)
    return part, (), metrics
