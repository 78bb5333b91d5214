"""A network cut into gradient-isolated modules, and the cut network as plain functions.

`CutNetwork.losses` is the reference form of local learning: one function with `jax.lax.stop_gradient` at every
boundary. Faster forms have the same gradients. Under `jax.jit` the reference form does not save memory, because XLA is
free to order the computations of all modules. Train with `ContSup`, which compiles one program per module.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.choices.local import (
    FEATURE_WIDTH,
    IMAGE_ENCODERS,
    RANGES,
    REMATERIALIZABLE,
    check_loss_scale,
    check_widths,
)
from kd_local.errors import check_type, unknown
from kd_local.local.contexts import IMAGES, Context, input_name, output_name
from kd_local.local.decoders import Decoder, PixelScale
from kd_local.local.heads import local_head
from kd_local.local.loss_scales import loss_weights
from kd_local.local.losses import local_loss
from kd_local.local.module import LocalModule, Reconstruction
from kd_local.local.partition import check_boundaries, equal_layers
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.models.layers import DType
from kd_local.networks import Collection, Network, Variables, by_block, check_network, of_block
from kd_local.ranges import check_arguments

Boundaries = Literal["equal"] | Sequence[str]


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
    """

    network: Network
    boundaries: tuple[str, ...]
    modules: tuple[LocalModule, ...]

    def init(
        self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct
    ) -> dict[str, Variables]:
        """New variables of every module by its name. Only the shape and dtype of `images` matter."""
        tensors: dict[str, Any] = {IMAGES: jax.ShapeDtypeStruct(images.shape, images.dtype)}
        variables = {}
        for module, key in zip(self.modules, jax.random.split(rng, len(self.modules)), strict=True):
            read = [tensors[name] for name in module.reads]
            variables[module.name] = module.init(key, read)
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
            module.name: module.head_output(variables[module.name], outputs[module.name])
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
        for module in self.modules:
            read = tuple(tensors[name] for name in module.reads)
            metrics, written, output, statistics[module.name] = module.evaluate(
                variables[module.name], read, labels, train=train
            )
            losses[module.name] = metrics["loss"]
            tensors.update(zip(module.writes, map(jax.lax.stop_gradient, written), strict=True))
        return LocalOutputs(losses, output, statistics)


def cut(
    network: Network,
    modules: int | None = None,
    *,
    classes: int,
    boundaries: Boundaries = "equal",
    context: str = "R1E",
    image_encoder: str = "full",
    head: str = "1c2f",
    loss: str = "softmax",
    task_loss: TaskLoss = PLAIN,
    decoder: PixelScale | None = None,
    loss_scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    aux_width: float = 1.0,
    feature_width: int = FEATURE_WIDTH,
    remat: Sequence[str] = (),
    channels_at_once: int = 8,
    dtype: DType = None,
) -> CutNetwork:
    """Cuts a network into gradient-isolated modules.

    >>> from kd_local.models import create
    >>> cut_network = cut(create("resnet32", classes=10), modules=4, classes=10, context="R1")
    >>> cut_network.boundaries
    ('stage1/2', 'stage2/1', 'stage3/0')
    >>> cut_network.modules[2].reads
    ('features1', 'supplied1')

    Args:
        network: a network whose last block returns the logits.
        modules: number of modules; it may be None if `boundaries` names blocks.
        classes: number of classes, the outputs of the local heads.
        boundaries: `equal` numbers of layers, or the names of the blocks after which to cut.
        context: R0, E, R1, R1E, or Rn / RnE with n >= 1, see `Context`.
        image_encoder: the context network of E: `full`, as in the paper, convolves at the image's resolution; `pooled`
            convolves at the boundary's resolution.
        head: the local heads: 0c1f, 0c2f, 1c1f, 1c2f, 1c3f or 2c2f, see `LocalHead`.
        loss: the local loss: softmax or contrast.
        task_loss: the cross entropy of the labels, of the last module and of each local loss softmax.
        decoder: None, or the normalisation of the images: each module but the last then has a decoder, which
            reconstructs the images before normalisation.
        loss_scale: with decoders, the weights of reconstruction and head at the first boundary, then those at the last
            boundary, see `published_loss_scale`.
        aux_width: multiplies the channels of heads, decoders and image encoders; at least 1/12.
        feature_width: hidden units of a head, and length of the features that the contrastive loss compares.
        remat: the networks of a module that the backward pass recomputes, for less memory and more time: any of blocks,
            contexts, head and decoder.
        channels_at_once: output channels of a context network that are recomputed at a time. 8, the tile of a TPU,
            needs the least memory; on a CPU 16 takes a third less time.
        dtype: compute dtype of heads, decoders and context networks; use the dtype of the network.

    Raises:
        ValueError: an argument is unknown or out of range.

    Reference: Yu et al., arXiv 2312.07636.
    """
    check_network("network", network)
    check_arguments(RANGES, classes=classes)
    if modules is not None:
        check_arguments(RANGES, modules=modules)
    last_block = network.modules[-1]
    if getattr(last_block, "classes", classes) != classes:
        raise ValueError(f"classes is {classes}, but the network has {last_block.classes}: use the same number")
    check_type("remat", remat, tuple | list, "use a tuple of names, such as ('blocks',)")
    if decoder is not None:
        check_type("decoder", decoder, PixelScale, "use PixelScale(mean, std), the normalisation of the images")
    if isinstance(boundaries, str):
        if boundaries != "equal":
            raise unknown("rule for boundaries", boundaries, ("equal",))
        if modules is None:
            raise ValueError("the number of modules is missing: give modules, or name the boundaries")
        boundaries = equal_layers(network, modules)
    boundaries = check_boundaries(network, boundaries)
    count = len(boundaries) + 1
    if modules is not None and modules != count:
        raise ValueError(
            f"{modules} modules, but {len(boundaries)} boundaries ({', '.join(boundaries)}), which make {count}: "
            f"give {modules - 1} boundaries, or modules={count}"
        )
    if image_encoder not in IMAGE_ENCODERS:
        raise unknown("image encoder", image_encoder, IMAGE_ENCODERS)
    check_widths(feature_width, aux_width)
    RANGES["channels_at_once"].check("channels_at_once", channels_at_once)
    for name in remat:
        if name not in REMATERIALIZABLE:
            raise unknown("name in remat", name, REMATERIALIZABLE)
        if name == "decoder" and decoder is None:
            raise ValueError(
                "remat has decoder, but there is none: leave it out, or give decoder=PixelScale(mean, std)"
            )
    scale = check_loss_scale(loss_scale)
    if decoder is not None:
        for i, name in enumerate(boundaries):
            if not any(loss_weights(scale, i, len(boundaries))):
                raise ValueError(
                    f"loss scale {scale}: both weights are 0 after {name}, so that module would not train; set one"
                )
    task_loss.check_classes(classes)
    head_loss = task_loss if loss == "softmax" else local_loss(loss)
    if head_loss is not task_loss and count > 1:
        task_loss.check_used(f"the local loss {loss} of the modules before the last ignores it", "use loss softmax")
    contexts = Context.parse(context)
    needed = {source for module in range(count) for source in contexts.sources(module)}
    outputs = classes if loss == "softmax" else feature_width
    local = local_head(head, outputs=outputs, width=aux_width, feature_width=feature_width, dtype=dtype)
    ends = [network.position(name) + 1 for name in boundaries]
    digits = max(2, len(str(count - 1)))
    local_modules = []
    for i, (start, end) in enumerate(zip([0, *ends], [*ends, len(network)], strict=True)):
        last = i == count - 1
        writes_input = input_name(i) in needed
        reads = (output_name(i - 1) if i else IMAGES, *contexts.sources(i))
        reconstruction = None
        if decoder is not None and not last:
            reads = reads if IMAGES in reads else (*reads, IMAGES)
            width = int(Decoder.width * aux_width)
            reconstruction = Reconstruction(Decoder(width, dtype), decoder, reads.index(IMAGES))
        local_modules.append(
            LocalModule(
                blocks=_numbered(network[start:end]),
                contexts=contexts.networks(i, image_encoder=image_encoder, width=aux_width, dtype=dtype),
                head=None if last else local,
                loss=task_loss if last else head_loss,
                classifies=last or loss == "softmax",
                reconstruction=reconstruction,
                writes_input=writes_input,
                remat=tuple(name for name in REMATERIALIZABLE if name in remat),
                channels_at_once=channels_at_once,
                name=f"module{i:0{digits}d}",
                names=network.names[start:end],
                reads=reads,
                writes=() if last else (output_name(i), input_name(i)) if writes_input else (output_name(i),),
                weights=() if reconstruction is None else loss_weights(scale, i, len(boundaries)),
            )
        )
    return CutNetwork(network, boundaries, tuple(local_modules))


def _numbered(blocks: Network) -> Network:
    """The same blocks with the names "0", "1", ..., so that equal modules are equal."""
    numbers = {name: str(i) for i, name in enumerate(blocks.names)}
    started = None
    if blocks.start is not None:
        started = by_block({number: of_block(blocks.start, name) for name, number in numbers.items()})
    return Network(tuple(numbers.values()), blocks.modules, started)
