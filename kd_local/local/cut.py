"""Cuts a network into gradient-isolated modules."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from kd_local.choices.local import (
    DEFAULT_HEAD,
    FEATURE_WIDTH,
    IMAGE_ENCODERS,
    LOSSES_OF_LOGITS,
    RANGES,
    REMATERIALIZABLE,
    check_widths,
)
from kd_local.errors import check_type, unknown
from kd_local.local.auxiliaries.head import HEAD_ALONE
from kd_local.local.auxiliary import AuxiliaryRule, Boundary, TargetRule, module_name
from kd_local.local.contexts import IMAGES, Context, input_name, output_name
from kd_local.local.cut_network import CutNetwork
from kd_local.local.decoders import Decoder, PixelScale
from kd_local.local.heads import local_head
from kd_local.local.loss_scales import weights_of_boundaries
from kd_local.local.losses import LocalLoss, local_loss
from kd_local.local.module import LocalModule, Reconstruction
from kd_local.local.partition import check_boundaries, equal_layers
from kd_local.local.similarity import SimilarityNetwork
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.models.layers import DType
from kd_local.networks import Network, by_block, check_network, of_block
from kd_local.ranges import check_arguments

Boundaries = Literal["equal"] | Sequence[str]


def cut(
    network: Network,
    modules: int | None = None,
    *,
    classes: int,
    boundaries: Boundaries = "equal",
    context: str = "R1E",
    image_encoder: str = "full",
    auxiliary: AuxiliaryRule = HEAD_ALONE,
    head: str | None = None,
    loss: str = "softmax",
    task_loss: TaskLoss = PLAIN,
    decoder: PixelScale | None = None,
    loss_scale: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0, 1.0, 1.0),
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
        auxiliary: what a module's output passes through on its way to the local loss; by default a head alone.
        head: the local heads: 0c1f, 0c2f, 1c1f, 1c2f, 1c3f or 2c2f, see `LocalHead`; dgl and pool, see `mlp_heads`;
            dgl_wide, see `wide_mlp_head`; None: 1c2f.
        loss: the local loss: softmax, contrast or predsim, see `similarity`.
        task_loss: the cross entropy of the labels, of the last module and of each local loss softmax or predsim.
        decoder: None, or the normalisation of the images: each module but the last then has a decoder, which
            reconstructs the images before normalisation.
        loss_scale: with decoders, the weights of reconstruction and head at the first boundary, then those at the last
            boundary, see `published_loss_scale`; or a pair for each boundary, see `man_loss_weights`.
        aux_width: multiplies the channels of heads, decoders and image encoders; at least 1/12.
        feature_width: hidden units of a head, and length of the features that the contrastive loss compares.
        remat: the networks of a module that the backward pass recomputes, for less memory and more time: any of blocks,
            contexts, head and decoder.
        channels_at_once: the most output channels of a context network that are recomputed at a time. 8, the tile of a
            TPU, needs the least memory; on a CPU 16 takes a third less time.
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
    weights = weights_of_boundaries(loss_scale, len(boundaries))
    if decoder is not None:
        for name, pair in zip(boundaries, weights, strict=True):
            if not any(pair):
                raise ValueError(
                    f"loss scale {tuple(loss_scale)}: both weights are 0 after {name}, so that module would not train; "
                    "set one"
                )
    task_loss.check_classes(classes)
    of_logits = loss in LOSSES_OF_LOGITS
    head_loss: LocalLoss = task_loss if of_logits else local_loss(loss)
    if head_loss is not task_loss and count > 1:
        task_loss.check_used(f"the local loss {loss} of the modules before the last ignores it", "use loss softmax")
    last_loss: LocalLoss = task_loss
    targets, branch = None, None
    check_type("auxiliary", auxiliary, AuxiliaryRule, "use a rule of kd_local.local, such as HeadRule()")
    if isinstance(auxiliary, TargetRule):
        if loss != "softmax":
            raise ValueError(f"loss is {loss}, but {type(auxiliary).__name__} has a loss of its own: leave loss out")
        targets, branch = auxiliary.targets(), auxiliary.branch(network)
        head_loss = last_loss = auxiliary.loss(task_loss)
    contexts = Context.parse(context)
    needed = {source for module in range(count) for source in contexts.sources(module)}
    if head is not None and not auxiliary.uses_head:
        raise ValueError(
            f"head is {head}, but the auxiliary network {type(auxiliary).__name__} has no head: leave head out"
        )
    outputs = classes if of_logits else feature_width
    head_network = local_head(
        head or DEFAULT_HEAD, outputs=outputs, width=aux_width, feature_width=feature_width, dtype=dtype
    )
    attachments = [
        auxiliary.at(Boundary(network, boundaries, i, head_network, outputs, dtype)) for i in range(len(boundaries))
    ]
    ends = [network.position(name) + 1 for name in boundaries]
    local_modules = []
    for i, (start, end) in enumerate(zip([0, *ends], [*ends, len(network)], strict=True)):
        last = i == count - 1
        inner = replace(branch, end=branch.end - start) if last and branch is not None and branch.end > start else None
        attached = None if last else attachments[i]
        own_loss = None if attached is None else attached.loss
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
                auxiliary=None if attached is None else attached.auxiliary,
                loss=last_loss if last else local_loss(own_loss) if own_loss else head_loss,
                classifies=last or (own_loss or loss) in LOSSES_OF_LOGITS,
                similarity=SimilarityNetwork(dtype) if (own_loss or loss) == "predsim" and not last else None,
                reconstruction=reconstruction,
                branch=inner,
                writes_input=writes_input,
                remat=tuple(name for name in REMATERIALIZABLE if name in remat),
                channels_at_once=channels_at_once,
                name=module_name(i, count),
                names=network.names[start:end],
                reads=reads,
                writes=() if last else (output_name(i), input_name(i)) if writes_input else (output_name(i),),
                weights=() if reconstruction is None else weights[i],
                targets=() if targets is None else targets.program.writes,
                frozen=(() if inner is None else inner.frozen) if attached is None else attached.frozen,
                after=() if attached is None else attached.after,
            )
        )
    return CutNetwork(network, boundaries, tuple(local_modules), () if targets is None else (targets,))


def _numbered(blocks: Network) -> Network:
    """The same blocks with the names "0", "1", ..., so that equal modules are equal."""
    numbers = {name: str(i) for i, name in enumerate(blocks.names)}
    started = None
    if blocks.start is not None:
        started = by_block({number: of_block(blocks.start, name) for name, number in numbers.items()})
    return Network(tuple(numbers.values()), blocks.modules, started)
