"""Every config key: default, range, meaning, and what uses it. The checks of values, their errors, `--help` and
docs/configuration.md (which `experiments.configs.reference` writes) come from here."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.description import Group, Key, Use, above, path, when
from experiments.configs.objectives import HYPER_PARAMETERS, OF_LOGITS
from experiments.configs.uses import (
    CONTSUP,
    DISTRIBUTED,
    HIDDEN,
    IMAGE_CONTEXT,
    LABELS,
    METHODS,
    NO_BUDGET,
    PIECEWISE,
    PREPARED,
    REMAT,
    SEVERAL_MODULES,
    SGD,
    SHARD,
    TAUGHT,
    WIDE,
    above_zero,
)
from experiments.from_config.numbers import numbers
from kd_local.choices.local import HEADS, IMAGE_ENCODERS, LOSSES, REMATERIALIZABLE, check_loss_scale, read_context
from kd_local.choices.local import RANGES as CUT
from kd_local.choices.networks import NETWORKS, SHORTCUTS
from kd_local.choices.optimization import OPTIMIZERS, SCHEDULES
from kd_local.choices.optimization import RANGES as OPTIMIZATION
from kd_local.choices.steps import BATCH_NORMS, FORMS, SHARDED
from kd_local.errors import unknown
from kd_local.ranges import Choice, Number, Switch, Text
from kd_local.sizes import parse_bytes

DTYPES = ("float32", "bfloat16")
PLACEMENTS = ("operations", "time")


def _each(noun: str, names: tuple[str, ...], *single: str) -> Callable[[str], None]:
    """Checks names with commas between, or a single word."""

    def check(text: str) -> None:
        for name in () if text in single else text.split(","):
            if name.strip() in single:
                raise ValueError(f"{noun} {name.strip()!r} with others: use it alone, or leave it out")
            if name.strip() not in names:
                raise unknown(noun, name.strip(), (*single, *names))

    return check


def _loss_scale(text: str) -> None:
    if text != "published":
        check_loss_scale(numbers("local.loss_scale", text, "'published', or four numbers", "5,0.05,0.2,0.5"))


_REMAT = Text("auto, none, or names with commas between", _each("name in remat", REMATERIALIZABLE, "auto", "none"))
_NETWORKS = Text("names of networks with commas between", _each("network", NETWORKS))
_SIZE = Number(1, 100_000, whole=True)
_SECONDS = Number(1, 604_800, whole=True)

KEYS: Mapping[str, Key | Group] = {
    "method": Key("contsup", Choice("method", METHODS), "the method: what is trained, and with which losses"),
    "seed": Key(0, Number(0, 2**32 - 1, whole=True), "seed of initialisation, order and augmentation"),
    "epochs": Key(30, OPTIMIZATION["epochs"], "passes through the training images"),
    "batch_size": Key(64, Number(1, 1_000_000, whole=True), "images of a step, over all devices"),
    "steps": Key(placeholder(int), Number(1, 2**31 - 1, whole=True), "limit on the number of steps"),
    "network": {
        "name": Key("resnet8", Choice("network", NETWORKS), "the network that is trained"),
        "dtype": Key("float32", Choice("dtype", DTYPES), "compute dtype; parameters are float32"),
        "shortcut": Key(
            "projection", Choice("shortcut", SHORTCUTS), "shortcuts of CIFAR ResNets; `padding`: option A of He et al."
        ),
        "weights": path("start weights: a file of PyTorch weights or the folder of a run; none: new ones"),
    },
    "data": {
        "name": Key(
            "digits", Text("a name"), "`digits` (included), `cifar10`, `imagenet2012`, or another prepared set"
        ),
        "data_dir": path("folder of tensorflow-datasets; none: its default folder"),
        "image_size": Key(
            placeholder(int),
            Number(1, 4096, whole=True),
            "height and width of streamed images, in pixels; none: 224",
            (PREPARED,),
        ),
        "workers": Key(
            placeholder(int),
            Number(0, 1024, whole=True),
            "processes that decode streamed images; none: one for each core",
            (PREPARED,),
        ),
        "on_devices": Key(
            placeholder(bool),
            Switch(),
            "holds all images on the devices; none: on accelerators, if they fit in a quarter of the memory",
        ),
        "train_examples": Key(
            placeholder(int), Number(2, 2**31 - 1, whole=True), "limit on the number of training images"
        ),
        "validation_examples": Key(0, Number(0, 2**31 - 1, whole=True), "training images held out for validation"),
        "test_examples": Key(
            0,
            Number(0, 2**31 - 1, whole=True),
            "training images held out for testing, in place of the test split; 0: none",
        ),
        "image_key": Key("image", Text("a name"), "feature of a prepared data set that holds the images", (PREPARED,)),
        "label_key": Key(
            "label",
            Text("a name"),
            "feature of a prepared data set that holds the labels, a `ClassLabel`",
            (PREPARED,),
        ),
        "augment": Key(
            True, Switch(), "random crops and flips, as usual for the data set; false: none, or central crops"
        ),
        "mean": Key(
            placeholder(str),
            Text("numbers in [0, 1]"),
            "mean of each channel of the pixels: `0.485,0.456,0.406`; none: the data set's",
        ),
        "std": Key(
            placeholder(str), Text("numbers in [0.001, 1]"), "standard deviation of each channel; none: the data set's"
        ),
    },
    "local": {
        "modules": Key(4, CUT["modules"], "number K of gradient-isolated modules", (CONTSUP, NO_BUDGET)),
        "context": Key("R1E", Text("R0, E, Rn or RnE with n from 1", read_context), "context supply", SEVERAL_MODULES),
        "boundaries": Key(
            "equal",
            Text("equal, balanced, published, or blocks"),
            "`equal` (layers), `balanced` (memory), `published`, or blocks: `stem,stage1/2`",
            SEVERAL_MODULES,
        ),
        "image_encoder": Key(
            "full",
            Choice("image encoder", IMAGE_ENCODERS),
            "context network of E: `full` (the paper's), or `pooled`, at a third of the cost",
            (*SEVERAL_MODULES, IMAGE_CONTEXT),
        ),
        "head": Key("1c2f", Choice("head", HEADS), "n convolutions, m linear layers", SEVERAL_MODULES),
        "loss": Key("softmax", Choice("local loss", LOSSES), "local loss", SEVERAL_MODULES),
        "decoder": Key(
            False, Switch(), "adds InfoPro's reconstruction of the image to each local loss", SEVERAL_MODULES
        ),
        "loss_scale": Key(
            "published",
            Text("published, or four numbers", _loss_scale),
            "weights of reconstruction and head at the first and at the last boundary: `5,0.05,0.2,0.5`",
            (*SEVERAL_MODULES, when("local.decoder", True)),
        ),
        "aux_width": Key(
            1.0,
            CUT["aux_width"],
            "multiplies the channels of heads, decoders and image encoders",
            (*SEVERAL_MODULES, WIDE),
        ),
        "feature_width": Key(
            128,
            CUT["feature_width"],
            "hidden units of a head, and features of the contrastive loss",
            (*SEVERAL_MODULES, HIDDEN),
        ),
        "remat": Key(
            "auto",
            _REMAT,
            "parts to recompute: any of `blocks,contexts,head,decoder`; `auto`: `contexts`",
            (CONTSUP, REMAT),
        ),
        "memory_budget": Key(
            placeholder(str),
            Text("a size, such as 8GiB", parse_bytes),
            "memory of one device: the fewest modules that fit replace `local.modules`",
            (CONTSUP, when("local.boundaries", "equal", "balanced")),
        ),
        "answer": Key(
            "last",
            Text("last, ensemble, or a module"),
            "deployed head: `last`, a module's name (early exit), or `ensemble`",
            SEVERAL_MODULES,
        ),
    },
    "end_to_end": {
        "remat": Key(
            False, Switch(), "stores only the blocks' outputs and recomputes the rest", (when("method", "end_to_end"),)
        )
    },
    "loss": {
        "label_smoothing": Key(
            0.0,
            Number(0, 1, open_high=True, example=0.1),
            "of the cross entropy of the labels in training; 0: none",
            (LABELS,),
        ),
        "class_weights": Key(
            placeholder(str),
            Text("balanced, or a number above 0 for each class, with commas between"),
            "of the cross entropy in training: `1,1,2`; `balanced`: images / (classes * images of the class)",
            (LABELS,),
        ),
    },
    "teacher": {
        "network": Key(
            placeholder(str), _NETWORKS, "networks of the teachers; none: read from their folders", (TAUGHT,)
        ),
        "weights": path("file of PyTorch weights or folder of a run; several are separated by commas", TAUGHT),
        "shortcut": Key(
            placeholder(str),
            Choice("shortcut", SHORTCUTS),
            "as `network.shortcut`; none: the run's, and `projection` for weights from a file",
            (TAUGHT,),
        ),
        "mean": Key(
            placeholder(str),
            Text("numbers in [0, 1]"),
            "as `data.mean`, for the images of a teacher from a file; none: the student's",
            (TAUGHT,),
        ),
        "std": Key(
            placeholder(str),
            Text("numbers in [0.001, 1]"),
            "as `data.std`, for the images of a teacher from a file; none: the student's",
            (TAUGHT,),
        ),
        "dtype": Key("float32", Choice("dtype", DTYPES), "compute dtype of the teacher", (TAUGHT,)),
        "cache": path("folder for the teacher's logits", when("method", *OF_LOGITS)),
    },
    "optimizer": {
        "name": Key("sgd", Choice("optimizer", OPTIMIZERS), "the optimizer"),
        "learning_rate": Key(0.1, OPTIMIZATION["rate"], "peak of the schedule"),
        "momentum": Key(placeholder(float), OPTIMIZATION["momentum"], "momentum; none: 0.9", (SGD,)),
        "nesterov": Key(placeholder(bool), Switch(), "Nesterov momentum; none: if there is momentum", (SGD,)),
        "weight_decay": Key(
            1e-4, OPTIMIZATION["weight_decay"], "weight decay: L2 for sgd and adam, decoupled for the others"
        ),
        "schedule": Key("contsup", Choice("schedule", SCHEDULES), "schedule of the learning rate"),
        "warmup_epochs": Key(5, OPTIMIZATION["warmup_epochs"], "epochs of linear warm-up; 0: none"),
        "warmup_rate": Key(
            placeholder(float),
            OPTIMIZATION["warmup_rate"],
            "learning rate at the start of the warm-up; none: 0.01",
            (above("optimizer.warmup_epochs", 0),),
        ),
        "milestones": Key(
            (), OPTIMIZATION["milestones"], "the epochs at which the rate is multiplied by `decay`", (PIECEWISE,)
        ),
        "decay": Key(
            placeholder(float), OPTIMIZATION["decay"], "factor of the rate at each milestone; none: 0.1", (PIECEWISE,)
        ),
        "accumulate": Key(
            1, OPTIMIZATION["accumulate"], "batches whose gradients are averaged for one update, within an epoch"
        ),
    },
    "step": Key(
        placeholder(str),
        Choice("form of the step", FORMS),
        "an executable per module (`separate`) or per step (`joined`: faster, more memory); none: `joined` if calls "
        "have several steps",
    ),
    "steps_per_call": Key(
        placeholder(int),
        Number(1, 10_000, whole=True),
        "steps that the devices run without the host, with `step=joined`; none: 1 on a CPU, where loops are slow, and "
        "up to 50 on accelerators that hold the images",
    ),
    "mesh": {
        "data": Key(1, _SIZE, "devices over which each batch is divided"),
        "module": Key(1, _SIZE, "groups of `mesh.data` devices over which the modules are divided"),
        "placement": Key(
            "operations",
            Choice("placement", PLACEMENTS),
            "balances the groups by multiply-adds or measured time",
            (above("mesh.module", 1),),
        ),
        "batch_norm": Key(
            "global",
            Choice("batch normalisation", BATCH_NORMS),
            "statistics of the whole batch (`global`) or of each device's part (`device`)",
            (above("mesh.data", 1),),
        ),
        "shard": Key(
            "nothing",
            Choice("part of the state to shard", tuple(SHARDED)),
            "part of the state that is divided over `mesh.data` (ZeRO)",
            (above("mesh.data", 1), SHARD),
        ),
    },
    "distributed": {
        "start_seconds": Key(300, _SECONDS, "how long processes wait for each other at the start", (DISTRIBUTED,)),
        "heartbeat_seconds": Key(
            100, _SECONDS, "a process that is silent for this long counts as lost, and the run ends", (DISTRIBUTED,)
        ),
    },
    "checkpoint": {
        "keep": Key(3, Number(1, 10_000, whole=True), "number of checkpoints kept"),
        "seconds": Key(10.0, Number(0, 1e7), "least time between two checkpoints; the end of a run is always saved"),
    },
}


def objective_keys() -> dict[str, Group]:
    """The hyper-parameters of every objective by its name."""
    return {
        name: {
            key: Key(default, values, meaning, _uses_of(name, weights))
            for key, (default, values, meaning, weights) in group.items()
        }
        for name, group in HYPER_PARAMETERS.items()
    }


def _uses_of(method: str, weights: tuple[str, ...]) -> tuple[Use, ...]:
    return (when("method", method), *([above_zero(method, weights)] if weights else ()))


def flat_keys() -> Iterator[tuple[str, Key]]:
    """Every key of `KEYS` with its group's name in front, `local.modules`."""
    yield from _flat(KEYS)


@cache
def all_keys() -> Mapping[str, Key]:
    """Every key by its full name, the objectives' hyper-parameters included."""
    return dict(_flat({**KEYS, **objective_keys()}))


def default_config() -> ConfigDict:
    """A new config with all defaults, to which no key can be added. Its placeholders are its own, so changing it does
    not change another config."""
    groups = {**KEYS, **objective_keys()}
    return ConfigDict(
        {
            name: one.value() if isinstance(one, Key) else {key: entry.value() for key, entry in one.items()}
            for name, one in groups.items()
        }
    ).lock()


def _flat(groups: Mapping[str, Key | Group]) -> Iterator[tuple[str, Key]]:
    for name, one in groups.items():
        if isinstance(one, Key):
            yield name, one
        else:
            yield from ((f"{name}.{key}", entry) for key, entry in one.items())
