"""Training of pairs of neighbouring modules of a cut network: the method of HPFF and MLAAN.

A pair loss trains two modules, see `kd_local.local.pair`. So module i has gradients of two programs: that of the pair
i, which owns the module before it, and that of the pair i + 1. The first hands its gradient on in its part of the
state, under `handed`, and the second adds its own before its optimizer's step.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Program, State
from kd_local.errors import check_type
from kd_local.local.auxiliaries.head import Head
from kd_local.local.auxiliary import Boundary
from kd_local.local.contexts import IMAGES, output_name
from kd_local.local.cut_network import CutNetwork
from kd_local.local.hpff import HPFF
from kd_local.local.mlaan import MLAAN
from kd_local.local.module import network_application
from kd_local.local.pair import (
    INDEPENDENT_HEAD,
    Average,
    Pair,
    PairAttachment,
    PairRule,
    second_paths,
)
from kd_local.local.pair_programs import HANDED, train_last, train_pair, update_average
from kd_local.networks import Variables, by_block, init_block, of_block, output_shape
from kd_local.state import check_optimizer, new_part, variables_of

PAIR_RULES: Mapping[str, type[PairRule]] = {"hpff": HPFF, "mlaan": MLAAN}
"""The rules by the names of their methods in a config."""

LOGITS = "logits"


@dataclass(frozen=True)
class PairTraining:
    """Trains each pair of neighbouring modules with a loss of its own, as one program per module.

    >>> from kd_local.local import HPFF, cut
    >>> from kd_local.models import create
    >>> cut_network = cut(create("resnet8", classes=10), modules=3, classes=10, context="R0", head="2c2f")
    >>> [program.name for program in PairTraining(cut_network, HPFF(), optax.sgd(0.1)).programs()]
    ['module00', 'module01', 'module02']

    The program of module j computes the loss of modules j and j + 1, and updates module j. The last program updates the
    last module. Its `loss` and `accuracy` are those of the network's logits.

    Attributes:
        cut_network: from `cut`, with context R0, and heads alone as auxiliary networks. With a decoder, a rule that has
            a reconstruction loss uses it.
        rule: `HPFF` or `MLAAN`.
        optimizer: updates each module's parameters; every module has its own optimizer state.

    Raises:
        ValueError: an argument has another type, or the network has a single module, or it is cut with context
            networks, other auxiliary networks, a loss other than softmax, or weights of losses.
    """

    cut_network: CutNetwork
    rule: PairRule
    optimizer: optax.GradientTransformation

    def __post_init__(self) -> None:
        check_type("cut_network", self.cut_network, CutNetwork, "use the result of cut(network, modules=4, ...)")
        check_type("rule", self.rule, PairRule, "use HPFF() or MLAAN()")
        check_optimizer(self.optimizer)
        modules = self.cut_network.modules
        method = type(self.rule).__name__
        if len(modules) < 2:
            raise ValueError(f"{method} trains pairs of modules, but there is a single module: cut into 2 or more")
        for module in modules[:-1]:
            if module.contexts or module.writes_input:
                raise ValueError(f"{method} has no context networks: cut with context='R0'")
            if type(module.auxiliary) is not Head:
                raise ValueError(
                    f"{method} reads heads alone, but the auxiliary network of {module.name} is "
                    f"{type(module.auxiliary).__name__}: leave auxiliary out"
                )
            if not module.classifies:
                raise ValueError(f"{method} has the cross entropy as loss: cut with loss='softmax'")
            if module.weights not in ((), (1.0, 1.0)):
                raise ValueError(f"{method} has weights of its own: leave loss_scale out")
        self.pairs()

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new state with one part per module, and parts of averages.

        Only the shape and dtype of `images` matter.

        Raises:
            ValueError: the features of the network are not maps, or a copy of a block has another input than the block.
        """
        network, modules = self.cut_network.network, self.cut_network.modules
        network.check_maps(type(self.rule).__name__)
        keys = jax.random.split(rng, 1 + len(modules))
        blocks = network.init(keys[0], images)
        x: Any = jax.ShapeDtypeStruct(images.shape, images.dtype)
        inputs = {}
        for name, block in network:
            inputs[name] = x
            x = output_shape(block, of_block(blocks, name), x)
        found: dict[str, Variables] = {}
        for (pair, attachment), key, module in zip(self.pairs(), keys[1:], modules[1:], strict=False):
            added: dict[str, Mapping[str, Any]] = {}
            if attachment is not None and pair.head is not None:
                output = inputs[network.names[network.position(module.names[-1]) + 1]]
                head_key, auxiliary_key, decoder_key = jax.random.split(key, 3)
                added[INDEPENDENT_HEAD] = init_block(pair.head, head_key, output)
                added |= attachment.auxiliary.init(auxiliary_key, output)
                if pair.reconstruction is not None:
                    added["decoder"] = init_block(pair.reconstruction.network, decoder_key, output, images)
                for copy, name in attachment.copies:
                    if output.shape[1:] != inputs[name].shape[1:]:
                        raise ValueError(
                            f"a copy of block {name!r} behind {module.names[-1]!r} reads features of shape "
                            f"{output.shape[1:]}, but the block reads {inputs[name].shape[1:]}: cut elsewhere, or name "
                            "the blocks with MLAAN(leaps=...)"
                        )
                    added[copy] = _copied(of_block(blocks, name))
                    output = output_shape(network[name], added[copy], output)
                if attachment.average is not None:
                    params = {str(i): blocks["params"][name] for i, name in enumerate(attachment.average.blocks)}
                    found[average_name(pair)] = {"params": _copied(params), "batch_stats": {}}
            found[pair.name] = by_block({"blocks": self._of_module(pair.number, blocks), **added})
        found[modules[-1].name] = by_block({"blocks": self._of_module(len(modules) - 1, blocks)})
        return self.state(found)

    def state(self, variables: Mapping[str, Variables]) -> State:
        """A state before the first step.

        Args:
            variables: those of each module's blocks and of the networks that the module's program adds, and those of
                averages, by the name of the part.
        """
        names = [module.name for module in self.cut_network.modules]
        state: State = {name: dict(own) for name, own in variables.items()}
        for name, following in itertools.zip_longest(names, names[1:]):
            state[name] = new_part(variables[name], self.optimizer)
            if following is not None:
                state[name][HANDED] = jax.tree.map(jnp.zeros_like, of_block(variables[following], "blocks"))
        return state

    def _of_module(self, number: int, variables: Variables) -> Variables:
        """The variables of a module's blocks by their numbers, from those of the network by name."""
        names = self.cut_network.modules[number].names
        return by_block({str(i): of_block(variables, name) for i, name in enumerate(names)})

    def network_variables(self, state: State) -> Variables:
        """The network's variables."""
        return by_block(
            {
                name: of_block(of_block(state[module.name], "blocks"), str(i))
                for module in self.cut_network.modules
                for i, name in enumerate(module.names)
            }
        )

    def programs(self) -> tuple[Program, ...]:
        """One program per module, and those of averages. Pairs with the same computation share one executable."""
        programs: list[Program] = []
        previous: tuple[str, ...] = ()
        for pair, attachment in self.pairs():
            programs.append(
                Program(
                    name=pair.name,
                    key=(pair, self.optimizer),
                    function=partial(train_pair, pair, self.optimizer),
                    reads=(*pair.reads, "labels"),
                    writes=pair.writes,
                    frozen=(*second_paths(pair.second_name), *previous, *pair.frozen),
                    constants=pair.weights,
                )
            )
            if attachment is not None and attachment.average is not None and attachment.average.momentum is not None:
                programs.append(self._average(pair, attachment.average, attachment.average.momentum))
            previous = (f"{pair.name}/{HANDED}",)
        loss = self.cut_network.modules[-1].loss
        last = Program(
            name=self.cut_network.modules[-1].name,
            key=(train_last, loss, self.optimizer),
            function=partial(train_last, loss, self.optimizer),
            reads=(LOGITS, "labels"),
            frozen=previous,
        )
        return (*programs, last)

    def _average(self, pair: Pair, average: Average, momentum: float) -> Program:
        """The program of a moving average, which runs before the programs of the averaged blocks."""
        places = {
            name: f"{module.name}/params/blocks/{i}"
            for module in self.cut_network.modules
            for i, name in enumerate(module.names)
        }
        return Program(
            name=average_name(pair),
            key=(update_average, len(average.blocks)),
            function=update_average,
            reads=(),
            frozen=tuple(places[name] for name in average.blocks),
            constants=(momentum,),
            trains=False,
        )

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The network's logits in evaluation mode."""
        return self.cut_network.network.apply(self.network_variables(state), images, train=False)[0]

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of the heads of single modules by the module's name, in evaluation mode. The first module has no
        such head."""
        features, _ = self.cut_network.network.features(self.network_variables(state), images, train=False)
        exits = {}
        for pair, _ in self.pairs():
            if pair.head is not None:
                apply = network_application(variables_of(state[pair.name]), {}, train=False)
                ends = self.cut_network.modules[pair.number + 1].names[-1]
                exits[pair.second_name] = apply(INDEPENDENT_HEAD, pair.head, features[ends])
        return exits

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters of the blocks."""
        return {module.name: state[module.name]["params"]["blocks"] for module in self.cut_network.modules}

    @property
    def deployed_program(self) -> str:
        """The name of the last module."""
        return self.cut_network.modules[-1].name

    def pairs(self) -> list[tuple[Pair, PairAttachment | None]]:
        """All pairs, with what the rule adds to each. It adds nothing to the last pair."""
        cut_network, found = self.cut_network, []
        modules, network = cut_network.modules, cut_network.network
        for number, (module, second) in enumerate(itertools.pairwise(modules)):
            attachment, head, decoder = None, None, second.reconstruction
            weights: tuple[float, ...] = self.rule.last_weights
            if isinstance(second.auxiliary, Head):
                head = second.auxiliary.network
                classes = head.outputs
                boundary = Boundary(network, cut_network.boundaries, number + 1, head, classes, head.dtype)
                attachment = self.rule.at(boundary, decoder)
                used = attachment.reconstruction is not None
                weights = attachment.weights if used else attachment.weights[:2]
            auxiliary = None if attachment is None else attachment.auxiliary
            reconstruction = None if attachment is None else attachment.reconstruction
            name = module.name
            reads = (output_name(number - 1),) if number else (IMAGES,)
            pair = Pair(
                number=number,
                first=module.blocks,
                second=second.blocks,
                opens=number == 0,
                head=head,
                auxiliary=auxiliary,
                reconstruction=reconstruction,
                pixels=None if reconstruction is None or decoder is None else decoder.pixels,
                loss=second.loss,
                remat=module.remat,
                name=name,
                second_name=second.name,
                reads=(*reads, *((IMAGES,) if reconstruction is not None and number else ())),
                writes=(LOGITS if head is None else output_name(number),),
                weights=weights,
                frozen=(),
            )
            if attachment is not None and attachment.average is not None:
                pair = replace(pair, frozen=(f"{average_name(pair)}/params/0",))
            found.append((pair, attachment))
        return found


def average_name(pair: Pair) -> str:
    """The name of the part of the state with the copies that a pair reads, such as `average03`."""
    return pair.second_name.replace("module", "average")


def _copied(tree: Any) -> Any:
    """Copies of arrays, because a step may donate them."""
    return jax.tree.map(jnp.array, tree)
