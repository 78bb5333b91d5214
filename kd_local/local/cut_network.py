"""A network cut into gradient-isolated modules, as plain functions.

`CutNetwork.losses` is the reference form of local learning: one function with `jax.lax.stop_gradient` at every
boundary. Faster forms have the same gradients. Under `jax.jit` the reference form does not save memory, because XLA is
free to order the computations of all modules. Train with `ContSup`, which compiles one program per module.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import subtree
from kd_local.errors import unknown
from kd_local.local.auxiliary import UntrainedPart
from kd_local.local.contexts import IMAGES
from kd_local.local.module import LocalModule
from kd_local.networks import Collection, Network, Variables


class LocalOutputs(NamedTuple):
    """Results of the reference form, `CutNetwork.losses`.

    Attributes:
        losses: each module's loss by the module's name. The last module's loss is the cross entropy of its logits.
        logits: the logits of the last module.
        batch_stats: each module's updated batch statistics by the module's name.
    """

    losses: dict[str, Float[Array, ""]]
    logits: Float[Array, "batch classes"]
    batch_stats: dict[str, Collection]


@dataclass(frozen=True)
class CutNetwork:
    """A network cut into modules, as returned by `cut`. Its variables are a dict: module name -> the module's
    variables.

    Attributes:
        network: the network before the cut.
        boundaries: the names of the blocks after which the network is cut.
        modules: the modules, in order.
        before: the untrained parts whose programs run before the modules.
    """

    network: Network
    boundaries: tuple[str, ...]
    modules: tuple[LocalModule, ...]
    before: tuple[UntrainedPart, ...] = ()

    def init(
        self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct
    ) -> dict[str, Variables]:
        """New variables of every module, and untrained parts of auxiliary networks, by name.

        Only the shape and dtype of `images` matter.
        """
        tensors: dict[str, Any] = {IMAGES: jax.ShapeDtypeStruct(images.shape, images.dtype)}
        variables = {
            part.program.name: part.init(jax.random.fold_in(rng, i), tensors[IMAGES])
            for i, part in enumerate(self.before)
        }
        for module, key in zip(self.modules, jax.random.split(rng, len(self.modules)), strict=True):
            read = [tensors[name] for name in module.reads]
            variables[module.name] = module.init(key, read)
            for i, part in enumerate(module.after):
                output = module.output_shape(variables[module.name], read)
                variables[part.program.name] = part.init(jax.random.fold_in(key, i), output)
            tensors.update(zip(module.writes, module.shapes(variables[module.name], read), strict=True))
        return variables

    def outputs(
        self,
        variables: Mapping[str, Variables],
        images: Float[Array, "batch h w c"],
        *,
        last: str | None = None,
    ) -> dict[str, Array]:
        """The output of every module by its name, in evaluation mode, with contexts.

        Args:
            variables: from `init`.
            images: normalised.
            last: the name of the last module to compute; None: all modules are computed.
        """
        tensors: dict[str, Array] = {IMAGES: images}
        outputs: dict[str, Array] = {}
        for module in self.modules:
            read = [tensors[name] for name in module.reads]
            x, output, _ = module.apply(variables[module.name], read, train=False)
            tensors.update(zip(module.writes, module.written(x, output), strict=True))
            outputs[module.name] = output
            if module.name == last:
                break
        return outputs

    def head_logits(
        self,
        variables: Mapping[str, Variables],
        images: Float[Array, "batch h w c"],
        names: Sequence[str] | None = None,
    ) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of heads by their modules' names, in evaluation mode. The last module has the network's logits.

        Args:
            variables: from `init`.
            images: normalised.
            names: names of modules, in order; later modules are not computed. None: all modules whose heads classify.
        """
        names = self.heads_for("ensemble") if names is None else names
        outputs = self.outputs(variables, images, last=names[-1])
        return {
            module.name: module.outputs(variables[module.name], outputs[module.name], _frozen(module, variables))
            for module in self.modules
            if module.name in names
        }

    def logits(
        self, variables: Mapping[str, Variables], images: Float[Array, "batch h w c"], *, answer: str = "last"
    ) -> Float[Array, "batch classes"]:
        """The logits of the deployed head, in evaluation mode.

        Args:
            variables: from `init`.
            images: normalised.
            answer: selects the deployed head: `last` for the network's own; a module's name, and then later modules are
                not computed; `ensemble` for the logarithm of the mean of all heads' probabilities.

        Raises:
            ValueError: see `heads_for`.
        """
        each = list(self.head_logits(variables, images, self.heads_for(answer)).values())
        if len(each) == 1:
            return each[0]
        log_probabilities = jnp.stack([jax.nn.log_softmax(logits) for logits in each])
        return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(len(each))

    def heads_for(self, answer: str) -> tuple[str, ...]:
        """The names of the modules whose heads `answer` selects, see `logits`.

        Raises:
            ValueError: `answer` is not `last`, `ensemble` or the name of a module whose head classifies.
        """
        names = tuple(module.name for module in self.modules if module.classifies)
        choices = {**{name: (name,) for name in names}, "last": names[-1:], "ensemble": names}
        if answer not in choices:
            raise unknown("answer", answer, choices)
        return choices[answer]

    def losses(
        self,
        variables: Mapping[str, Variables],
        images: Float[Array, "batch h w c"],
        labels: Int[Array, " batch"],
        *,
        train: bool = True,
    ) -> LocalOutputs:
        """The losses of all modules in one function, without gradients between modules: the reference form.

        Args:
            variables: from `init`.
            images: normalised.
            labels: in [0, classes).
            train: if True, batch normalisation uses the batch's statistics and updates the running ones.
        """
        tensors: dict[str, Array] = {IMAGES: images}
        losses, statistics, output = {}, {}, images
        for part in self.before:
            program, given = part.program, {**tensors, "labels": labels}
            inputs = tuple(given[name] for name in program.reads)
            own = jax.lax.stop_gradient(dict(variables[program.name]))
            _, written, _ = program.function(own, (), inputs, jax.random.key(0), jnp.zeros(0))
            tensors.update(zip(program.writes, written, strict=True))
        for module in self.modules:
            read = tuple(tensors[name] for name in module.reads)
            metrics, written, output, statistics[module.name] = module.evaluate(
                variables[module.name],
                read,
                labels,
                tuple(tensors[name] for name in module.targets),
                train=train,
                frozen=_frozen(module, variables),
            )
            losses[module.name] = metrics["loss"]
            tensors.update(zip(module.writes, map(jax.lax.stop_gradient, written), strict=True))
        return LocalOutputs(losses, output, statistics)


def _frozen(module: LocalModule, variables: Mapping[str, Variables]) -> tuple[Any, ...]:
    return tuple(subtree(variables, path) for path in module.frozen)
