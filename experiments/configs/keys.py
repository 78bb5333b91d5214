"""Every config key with its default and its meaning. `experiments.configs.reference` writes docs/configuration.md."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from kd_local.distill import OBJECTIVES, StoneLoss
from kd_local.models.registry import NAMES


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        default: its value unless a config or the command line sets another; a placeholder has a type and no value.
        meaning: what it sets, with its choices, range or unit.
    """

    default: Any
    meaning: str

    @property
    def shown(self) -> str:
        """The default as a command line takes it, or the type that a key without a default takes."""
        if isinstance(self.default, FieldReference):
            return f"none ({self.default.get_type().__name__})"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default)) or "none"
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def value(self) -> Any:
        """The default as a config holds it."""
        return placeholder(self.default.get_type()) if isinstance(self.default, FieldReference) else self.default


Group = Mapping[str, Key]

KEYS: Mapping[str, Key | Group] = {
    "method": Key("contsup", "`contsup`, `end_to_end`, or a method of distillation (last rows of this table)"),
    "seed": Key(0, "of initialisation, order and augmentation; 0 to 2^32 - 1"),
    "epochs": Key(30, "passes through the training images"),
    "batch_size": Key(64, "images of a step, over all devices"),
    "steps": Key(placeholder(int), "limit on the number of steps"),
    "network": {
        "name": Key("resnet8", ", ".join(f"`{name}`" for name in NAMES)),
        "dtype": Key("float32", "of the computation: `float32` or `bfloat16`; parameters are float32"),
        "shortcut": Key("projection", "of CIFAR ResNets: `projection`, or `padding` (option A of He et al.)"),
    },
    "data": {
        "name": Key("digits", "`digits` (included), `cifar10`, `imagenet2012`, or another prepared data set"),
        "data_dir": Key(placeholder(str), "folder of tensorflow-datasets; none: its default folder"),
        "image_size": Key(placeholder(int), "height and width of streamed images, in pixels; none: 224"),
        "workers": Key(placeholder(int), "processes that decode streamed images; none: one for each core"),
        "train_examples": Key(placeholder(int), "limit on the number of training images"),
        "validation_examples": Key(0, "training images held out for validation"),
        "test_examples": Key(0, "training images held out for testing, in place of the test split; 0: none"),
        "image_key": Key("image", "feature of a prepared data set that holds the images"),
        "label_key": Key("label", "feature of a prepared data set that holds the labels, a `ClassLabel`"),
        "augment": Key(True, "random crops and flips, as usual for the data set; false: none, or central crops"),
        "mean": Key(placeholder(str), "of pixels in [0, 1], by channel: `0.485,0.456,0.406`; none: the data set's"),
        "std": Key(placeholder(str), "of pixels, by channel, in (0, 1]; none: the data set's"),
    },
    "local": {
        "modules": Key(4, "number K of gradient-isolated modules"),
        "context": Key("R1E", "context supply: `R0`, `E`, `R1`, `R1E`, or `Rn` and `RnE` with n of 1 or more"),
        "boundaries": Key("equal", "`equal` (layers), `balanced` (memory), `published`, or blocks: `stem,stage1/2`"),
        "image_encoder": Key("full", "of context E: `full` (the paper's) or `pooled`, a third of the cost"),
        "head": Key("1c2f", "n convolutions, m linear layers: `0c1f`, `0c2f`, `1c1f`, `1c2f`, `1c3f`, `2c2f`"),
        "loss": Key("softmax", "local loss: `softmax` or `contrast`"),
        "decoder": Key(False, "adds InfoPro's reconstruction of the image to each local loss"),
        "loss_scale": Key(
            "published",
            "weights of reconstruction and head at the first and at the last boundary: `published`, or four numbers"
            " `5,0.05,0.2,0.5`; only with a decoder",
        ),
        "aux_width": Key(1.0, "multiplies the channels of heads, decoders and image encoders; 1/12 or more"),
        "feature_width": Key(128, "hidden units of a head, and features of the contrastive loss"),
        "remat": Key("auto", "what is recomputed: any of `blocks,contexts,head,decoder`; `none`; `auto`: `contexts`"),
        "memory_budget": Key(placeholder(str), "of one device, `8GiB`: the fewest modules that fit replace `modules`"),
        "answer": Key("last", "deployed head: `last`, a module's name (early exit), or `ensemble`"),
    },
    "end_to_end": {"remat": Key(False, "stores only the blocks' outputs and recomputes the rest")},
    "teacher": {
        "network": Key(placeholder(str), "name, or several with commas; none: read from the run's config.json"),
        "weights": Key(placeholder(str), "file of PyTorch's weights or folder of a run; several with commas"),
        "shortcut": Key("projection", "as `network.shortcut`, for weights from a file"),
        "dtype": Key("float32", "of the teacher's computation: `float32` or `bfloat16`"),
        "cache": Key(placeholder(str), "folder for the teacher's logits; for `kd`, `dkd`, `mlkd` and `dist`"),
    },
    "optimizer": {
        "name": Key("sgd", "`sgd`, `adam`, `adamw`, `lamb` or `lion`"),
        "learning_rate": Key(0.1, "peak of the schedule"),
        "momentum": Key(placeholder(float), "of sgd, in [0, 1); none: 0.9"),
        "nesterov": Key(placeholder(bool), "of sgd; none: if there is momentum"),
        "weight_decay": Key(1e-4, "L2 for sgd and adam, decoupled for the others"),
        "schedule": Key("contsup", "`contsup`, `cosine`, `constant`, `linear` or `piecewise`"),
        "warmup_epochs": Key(5, "epochs of linear warm-up; 0: none"),
        "warmup_rate": Key(placeholder(float), "learning rate at the start of the warm-up; none: 0.01"),
        "milestones": Key((), "of piecewise: the epochs at which the rate is multiplied by `decay`"),
        "decay": Key(placeholder(float), "of piecewise, in (0, 1]; none: 0.1"),
        "accumulate": Key(1, "batches whose gradients are averaged for one update, within an epoch"),
    },
    "step": Key("separate", "an executable per module (`separate`) or per step (`joined`: faster, more memory)"),
    "mesh": {
        "data": Key(1, "devices over which each batch is divided"),
        "module": Key(1, "groups of `mesh.data` devices over which the modules are divided"),
        "placement": Key("operations", "balances the groups by `operations` (multiply-adds) or measured `time`"),
        "batch_norm": Key("global", "statistics of the whole batch (`global`) or of each device's part (`device`)"),
        "shard": Key("nothing", "divided over `mesh.data` (ZeRO): `nothing`, `optimizer` or `state`"),
    },
    "distributed": {
        "start_seconds": Key(300, "how long processes wait for each other at the start"),
        "heartbeat_seconds": Key(100, "a process that is silent for this long counts as lost, and the run ends"),
    },
    "checkpoint": {
        "keep": Key(3, "number of checkpoints kept"),
        "seconds": Key(10.0, "least time between two checkpoints; the end of a run is always saved"),
    },
}


def objective_keys() -> dict[str, Group]:
    """The hyper-parameters of every objective by its name; meanings are the `Attributes` of its class's docstring."""
    return {
        name: {field.name: Key(field.default, attributes(objective).get(field.name, "")) for field in fields(objective)}
        for name, objective in {**OBJECTIVES, "local_distillation": StoneLoss}.items()
    }


def default_config() -> ConfigDict:
    """A new config with all defaults. Its placeholders are its own, so changing it does not change another config."""
    groups = {**KEYS, **objective_keys()}
    return ConfigDict(
        {
            name: one.value() if isinstance(one, Key) else {key: entry.value() for key, entry in one.items()}
            for name, one in groups.items()
        }
    )


def attributes(documented: type) -> dict[str, str]:
    """The `Attributes` section of a class's docstring: the text of each attribute, on one line."""
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", inspect.getdoc(documented) or "", re.MULTILINE)
    found = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def flat_keys() -> Iterator[tuple[str, Key]]:
    """Every key of `KEYS` with its group's name in front, `local.modules`."""
    for name, one in KEYS.items():
        if isinstance(one, Key):
            yield name, one
        else:
            yield from ((f"{name}.{key}", entry) for key, entry in one.items())
