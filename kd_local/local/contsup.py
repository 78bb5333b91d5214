"""ContSup: greedy local learning with context supply, one compiled program per module.

Reference: Yu et al., "Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply" (arXiv
2312.07636). With context R0 it is plain greedy local learning; with the head `dgl` it is then DGL (Belilovsky et al.,
ICML 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program, State, owner
from kd_local.errors import check_type
from kd_local.local.cut_network import CutNetwork
from kd_local.local.module import LocalModule
from kd_local.networks import Variables, by_block, of_block
from kd_local.state import Part, check_optimizer, new_part, update_part, variables_of


@dataclass(frozen=True)
class ContSup:
    """Trains each module of a cut network with its own loss, as one program per module.

    >>> from kd_local.local import cut
    >>> from kd_local.models import create
    >>> cut_network = cut(create("resnet8", classes=10), modules=2, classes=10, context="R1E")
    >>> [program.name for program in ContSup(cut_network, optax.sgd(0.1)).programs()]
    ['module00', 'module01']

    Attributes:
        cut_network: from `cut`.
        optimizer: updates each module's parameters; every module has its own optimizer state.
        answer: selects the deployed head: `last` for the network's own; a module's name for an early exit after this
            module; `ensemble` for the mean of the probabilities of all heads.

    Raises:
        ValueError: an argument has another type, or `answer` is unknown or names a module whose head does not classify.
    """

    cut_network: CutNetwork
    optimizer: optax.GradientTransformation
    answer: str = "last"

    def __post_init__(self) -> None:
        check_type("cut_network", self.cut_network, CutNetwork, "use the result of cut(network, modules=4, ...)")
        check_optimizer(self.optimizer)
        heads = self.cut_network.heads_for(self.answer)
        if self.answer == "ensemble" and len(heads) == 1 < len(self.cut_network.modules):
            raise ValueError("answer is ensemble, but no head before the last module classifies: use last")

    def check_maps(self) -> None:
        """Raises ValueError unless the features at the boundaries are maps, which heads and contexts need.

        Sequences with class tokens are accepted if every module takes them, see `LocalModule.takes_tokens`.
        """
        modules = self.cut_network.modules
        if len(modules) > 1:
            tokens = all(module.takes_tokens for module in modules)
            self.cut_network.network.check_maps("local learning", tokens=tokens)

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new state with one part per module, and untrained parts of auxiliary networks.

        Only the shape and dtype of `images` matter.

        Raises:
            ValueError: the network is cut into several modules, and its features are not maps.
        """
        self.check_maps()
        trained = {module.name for module in self.cut_network.modules}
        return {
            name: new_part(variables, self.optimizer) if name in trained else variables
            for name, variables in self.cut_network.init(rng, images).items()
        }

    def programs(self) -> tuple[Program, ...]:
        """One program per module, and those of untrained parts. Equal modules share one executable."""
        programs = [part.program for part in self.cut_network.before]
        for module in self.cut_network.modules:
            programs.append(
                Program(
                    name=module.name,
                    key=(module, self.optimizer),
                    function=partial(_train_module, module, self.optimizer),
                    reads=(*module.reads, "labels", *module.targets),
                    writes=module.writes,
                    frozen=module.frozen,
                    constants=module.weights,
                )
            )
            programs += [part.program for part in module.after]
        return tuple(programs)

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The logits of the deployed head in evaluation mode, with contexts."""
        return self.cut_network.logits(_variables(state), images, answer=self.answer)

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of every head that classifies, by module name, and of their ensemble, in evaluation mode."""
        variables = _variables(state)
        logits = self.cut_network.head_logits(variables, images)
        if len(logits) == 1:
            return {}
        return {**logits, "ensemble": self.cut_network.logits(variables, images, answer="ensemble")}

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters of the blocks, the context networks and the deployed auxiliary networks."""
        names = self.cut_network.heads_for(self.answer)
        deployed = {}
        for module in self.cut_network.modules:
            answers = module.name in names and module.auxiliary is not None
            deployed[module.name] = {
                key: value
                for key, value in state[module.name]["params"].items()
                if key == "blocks" or key.startswith("context") or (answers and key not in _NEVER_DEPLOYED)
            }
            if answers:
                deployed.update({owner(path): state[owner(path)]["params"] for path in module.frozen})
            if module.name == names[-1]:
                break
        return deployed

    def network_variables(self, state: State) -> Variables | None:
        """The network's variables; None if the deployed network has context networks or another head."""
        modules = self.cut_network.modules
        if self.answer != "last" or any(module.contexts for module in modules):
            return None
        return by_block(
            {
                name: of_block(of_block(variables_of(state[module.name]), "blocks"), number)
                for module in modules
                for name, number in zip(module.names, module.blocks.names, strict=True)
            }
        )

    @property
    def deployed_program(self) -> str | None:
        """The name of the module with the deployed head; None for an ensemble, whose logits no module computes."""
        names = self.cut_network.heads_for(self.answer)
        return names[0] if len(names) == 1 else None


_NEVER_DEPLOYED = ("decoder", "similarity")


def _variables(state: State) -> dict[str, Variables]:
    return {name: variables_of(part) for name, part in state.items()}


def _train_module(
    module: LocalModule,
    optimizer: optax.GradientTransformation,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    weights: Float[Array, " n"],
) -> tuple[Part, tuple[jax.Array, ...], Metrics]:
    read, labels, targets = tensors[: len(module.reads)], tensors[len(module.reads)], tensors[len(module.reads) + 1 :]

    def objective(params: Any) -> tuple[Array, tuple[Any, tuple[Metrics, tuple[Array, ...]]]]:
        variables = {"params": params, "batch_stats": part["batch_stats"]}
        metrics, written, _, statistics = module.evaluate(
            variables, read, labels, targets, train=True, weights=weights, frozen=frozen
        )
        return metrics["loss"], (statistics, (metrics, written))

    part, _, (metrics, written) = update_part(part, optimizer, objective)
    return part, written, metrics
