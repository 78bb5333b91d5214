"""Every config key: default, range, meaning, and what uses it. The checks of values, their errors, `--help` and
docs/configuration.md (which `experiments.configs.reference` writes) come from here."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.combination import COMBINATION, COMBINED
from experiments.configs.data_keys import DATA, STRONG_VIEW
from experiments.configs.description import Group, Key, Use, above, names_with_commas, path, when
from experiments.configs.local_keys import LOCAL
from experiments.configs.objectives import (
    AUXILIARY_PARAMETERS,
    HYPER_PARAMETERS,
    PAIR_PARAMETERS,
    TEACHER_GROUP,
)
from experiments.configs.optimizer_keys import OPTIMIZER
from experiments.configs.uses import (
    CACHED,
    DISTRIBUTED,
    LABELS,
    LOCALLY_TAUGHT,
    METHODS,
    OF_PAIRS,
    SHARD,
    TAUGHT,
    above_zero,
    of_objective,
)
from kd_local.choices.networks import NETWORKS, SHORTCUTS
from kd_local.choices.optimization import RANGES as OPTIMIZATION
from kd_local.choices.steps import BATCH_NORMS, FORMS, SHARDED
from kd_local.ranges import Choice, Number, Switch, Text

DTYPES = ("float32", "bfloat16")
PLACEMENTS = ("operations", "time")


_NETWORKS = Text("names of networks with commas between", names_with_commas("network", NETWORKS))
_SIZE = Number(1, 100_000, whole=True)
_SECONDS = Number(1, 604_800, whole=True)


class _Method(Choice):
    """The methods. The name of one that is now an auxiliary network has an error that says so."""

    def check(self, name: str, value: Any) -> None:
        if value == "local_distillation":
            raise ValueError(
                "method local_distillation is now an auxiliary network: use --config.method=contsup "
                "--config.local.auxiliary=teacher --config.local.context=R0 --config.local.boundaries=stages, and "
                "--config.teacher_auxiliary.… for its numbers; an older run of it cannot be resumed"
            )
        super().check(name, value)


KEYS: Mapping[str, Key | Group] = {
    "method": Key("contsup", _Method("method", METHODS), "the method: what is trained, and with which losses"),
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
        "weights": path("start weights: a file of weights, an orbax checkpoint or the folder of a run; none: new ones"),
    },
    "data": DATA,
    "strong_view": STRONG_VIEW,
    "local": LOCAL,
    "end_to_end": {
        "remat": Key(
            False, Switch(), "stores only the blocks' outputs and recomputes the rest", (when("method", "end_to_end"),)
        )
    },
    COMBINED: COMBINATION,
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
        "weights": path("file of weights, orbax checkpoint or folder of a run; several with commas between", TAUGHT),
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
        "cache": path("folder for the teacher's logits", CACHED),
    },
    "optimizer": OPTIMIZER,
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


def hyper_parameter_keys() -> dict[str, Group]:
    """The hyper-parameters of every objective, auxiliary network and rule for pairs by its name."""
    return {
        name: {
            key: Key(default, values, meaning, _uses_of(user, name, key, weights))
            for key, (default, values, meaning, weights) in group.items()
        }
        for user, table in (
            ("method", HYPER_PARAMETERS),
            ("local.auxiliary", AUXILIARY_PARAMETERS),
            ("method", PAIR_PARAMETERS),
        )
        for name, group in table.items()
    }


def _uses_of(user: str, name: str, key: str, weights: tuple[str, ...]) -> tuple[Use, ...]:
    if name == TEACHER_GROUP:
        used = LOCALLY_TAUGHT
    else:
        used = of_objective(name, key) if name in HYPER_PARAMETERS else when(user, name)
    weighted = (above_zero(name, weights),) if weights else ()
    return (used, *weighted, *OF_PAIRS.get(f"{name}.{key}", ()))


def flat_keys() -> Iterator[tuple[str, Key]]:
    """Every key of `KEYS` with its group's name in front, `local.modules`."""
    yield from _flat(KEYS)


@cache
def all_keys() -> Mapping[str, Key]:
    """Every key by its full name, hyper-parameters included."""
    return dict(_flat({**KEYS, **hyper_parameter_keys()}))


def default_config() -> ConfigDict:
    """A new config with all defaults, to which no key can be added. Its placeholders are its own, so changing it does
    not change another config."""
    groups = {**KEYS, **hyper_parameter_keys()}
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
