"""Checks of a config that concern several keys, and need neither the data nor the network.

A program makes them before it imports JAX, so that a mistake is refused at once. Values that fit each other may still
not fit the network or the images, which `experiments.from_config.experiment.build` finds.
"""

import itertools
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs.combination import DISTILLATION, objectives_in_use
from experiments.configs.objectives import (
    AUXILIARY_PARAMETERS,
    HYPER_PARAMETERS,
    PAIR_PARAMETERS,
    PAIRS,
    TEACHER,
)
from experiments.from_config.numbers import BALANCED, class_weights, pixel_numbers
from kd_local.choices import data
from kd_local.choices.distillation import check_hyperparameters
from kd_local.choices.local import check_widths, read_context
from kd_local.choices.networks import check_network_name
from kd_local.choices.optimization import check_accumulate, check_optimizer, check_schedule
from kd_local.choices.steps import JOINED, SEPARATE, check_batch_size, check_divides, check_steps_per_call
from kd_local.errors import unknown
from kd_local.paths import read_existing, read_folder, read_path

BOUNDARY_RULES = ("equal", "balanced", "published", "single", "man", "man_plus", "stages")


def check_config(config: ConfigDict) -> None:
    """Checks that the values of a config, which are in their ranges, fit each other.

    Raises:
        ValueError: two values contradict each other, or a list of numbers has another form.
    """
    if config.data.train_examples is not None:
        check_batch_size(config.data.train_examples, config.batch_size)
    for group, name in itertools.product(("data", "teacher"), ("mean", "std")):
        if config[group][name] is not None:
            pixel_numbers(f"{group}.{name}", config[group][name])
    if config.loss.class_weights not in (None, BALANCED):
        class_weights(config.loss.class_weights)
    check_network_name(config.network.name, config.network.shortcut)
    check_divides(config.batch_size, config.mesh.data)
    _check_optimization(config)
    _check_context(config)
    check_local(config)
    for user, numbers in {**HYPER_PARAMETERS, **AUXILIARY_PARAMETERS, **PAIR_PARAMETERS}.items():
        check_hyperparameters({name: of[1] for name, of in numbers.items()}, config[user].to_dict())


def check_files(config: ConfigDict, *, shapes_only: bool = False) -> None:
    """Checks that data set, teachers and start weights are there. No file is read.

    Args:
        config: the config.
        shapes_only: True for programs that need only the shapes of images and teachers.

    Raises:
        ValueError: the data set is unknown, a path does not exist, or the method needs a teacher and has none.
        FileNotFoundError: the data set is not prepared in `data.data_dir`.
    """
    name = config.data.name
    data_dir = None if config.data.data_dir is None else read_path(config.data.data_dir, "data.data_dir")
    data.check_name(name, data_dir)
    if has_teachers(config):
        teacher_names(config, len(teacher_places(config)), shapes_only=shapes_only)
    if shapes_only:
        return
    if config.teacher.cache is not None:
        read_folder(config.teacher.cache, "teacher.cache")
    if config.network.weights is not None:
        read_existing(config.network.weights, "network.weights")
    if data_dir is not None and not data.is_there(name, data_dir):
        raise data.missing(name, data_dir)


def check_warmups(config: ConfigDict, given: Collection[str]) -> None:
    """Checks that no warm-up that the user has set is longer than the run. `remarks` has notes on others: with
    `--config.epochs=2` a user tries a config in few epochs.

    Args:
        config: the config.
        given: the keys that the command line sets.

    Raises:
        ValueError: a warm-up has more epochs than the run.
    """
    for group in ("optimizer", *_objectives(config)):
        key = f"{group}.warmup_epochs"
        if key in given and config[group].warmup_epochs > config.epochs:
            raise ValueError(
                f"{key} is {config[group].warmup_epochs}, but the run has {config.epochs} epochs: use 0 (no warm-up) "
                f"to {config.epochs}, or more epochs"
            )


def remarks(config: ConfigDict) -> tuple[str, ...]:
    """Notes on a config that `check_config` accepts: warm-ups that the run does not complete."""
    notes = []
    if config.optimizer.warmup_epochs >= config.epochs:
        notes.append(
            f"the run of {config.epochs} epochs ends within the warm-up ({config.optimizer.warmup_epochs} epochs): the "
            f"learning rate stays below {config.optimizer.learning_rate:g}"
        )
    for name in _objectives(config):
        if (epochs := config[name].get("warmup_epochs", 0)) > config.epochs:
            notes.append(
                f"{name}.warmup_epochs is {epochs}: in {config.epochs} epochs the weight reaches "
                f"{config.epochs / epochs:.0%} of its value"
            )
    return tuple(notes)


def check_local(config: ConfigDict) -> None:
    """Checks boundaries, widths, and what is left to measurement: a memory budget, and balanced boundaries.

    Raises:
        ValueError: they contradict each other or the form of the step.
    """
    local = config.local
    boundary_names(local.boundaries)
    check_widths(local.feature_width, local.aux_width)
    if config.method in PAIRS:
        _check_pairs(config)
    form, _ = step_form(config)
    searched = local.memory_budget is not None or local.boundaries == "balanced"
    if local.auxiliary == "momentum" and config.method == "contsup" and searched:
        raise ValueError(
            "local.auxiliary is 'momentum', which copies the block after each boundary, but the search for boundaries "
            "also tries a cut before the network's last layers: use boundaries by a rule or by name, such as single"
        )
    if config.get("momentum", {}).get("faithful") and config.momentum.blocks == 2:
        raise ValueError("momentum.faithful is true, but with momentum.blocks=2 the stem has no head: leave one out")
    if form != SEPARATE and searched:
        raise ValueError(
            f"step is {form!r}, but balanced boundaries and memory budgets need separate executables: use "
            "step=separate and steps_per_call=1, or boundaries by name"
        )


def _check_pairs(config: ConfigDict) -> None:
    """Refuses values of local keys that do not fit pairs of modules."""
    local, method = config.local, config.method
    if local.modules < 2:
        raise ValueError(f"local.modules is {local.modules}, but {method} trains pairs of modules: use 2 or more")
    if local.boundaries == "balanced":
        raise ValueError(
            f"local.boundaries is balanced, but the memory of {method} is not measured: use equal, man, or blocks"
        )


def step_form(config: ConfigDict) -> tuple[str, int]:
    """`(form of the step, steps per call)`. Without values in the config, these are a separate form and 1.

    Raises:
        ValueError: several steps per call of another form than `joined`, or with several groups of devices.
    """
    steps = config.steps_per_call or 1
    form = config.step or (JOINED if steps > 1 else SEPARATE)
    check_steps_per_call(form, steps)
    if steps > 1 and config.mesh.module > 1:
        raise ValueError(
            f"steps_per_call is {steps} with {config.mesh.module} groups of devices: use 1, or a single group "
            "(mesh.module=1)"
        )
    return form, steps


def boundary_names(boundaries: str) -> tuple[str, ...] | str:
    """The rule for boundaries, or the names in a text such as `stem,stage1/0`.

    A single word without a slash is a rule, unless it is `stem`.

    Raises:
        ValueError: there is no such rule.
    """
    names = tuple(name.strip() for name in boundaries.split(","))
    if boundaries not in BOUNDARY_RULES and (len(names) > 1 or "/" in boundaries or boundaries == "stem"):
        return names
    if boundaries not in BOUNDARY_RULES:
        raise ValueError(f"{unknown('rule for boundaries', boundaries, BOUNDARY_RULES)}; or blocks: stem,stage1/0")
    return boundaries


def locally_taught(config: ConfigDict) -> bool:
    """True if the modules of a cut network learn through a teacher."""
    local = config.local
    several = local.modules > 1 or local.memory_budget is not None
    return bool(config.method == "contsup" and several and local.auxiliary == TEACHER)


def has_teachers(config: ConfigDict) -> bool:
    """True if the method has teachers."""
    return config.method in DISTILLATION or locally_taught(config)


def teacher_places(config: ConfigDict) -> list[Path]:
    """The paths in `teacher.weights`: a file or a folder of a run for each teacher.

    Raises:
        ValueError: a path does not exist, or is given twice.
    """
    weights = config.teacher.weights
    places = [] if weights is None else [read_existing(place, "teacher.weights") for place in weights.split(",")]
    resolved = [place.resolve() for place in places]
    if len(set(resolved)) < len(resolved):
        twice = next(place for i, place in enumerate(places) if resolved[i] in resolved[:i])
        raise ValueError(f"teacher.weights names {twice} twice: name each teacher once")
    return places


def teacher_names(config: ConfigDict, places: int, *, shapes_only: bool = False) -> list[str]:
    """The names in `teacher.network`; none if they are to be read from the folders of runs.

    Args:
        config: the config, of a method with teachers.
        places: the number of paths in `teacher.weights`.
        shapes_only: True if no weights are needed.

    Raises:
        ValueError: no teacher is given, more or fewer networks than weights, or too many for the method.
    """
    if shapes_only and not places and config.teacher.network is None:
        raise ValueError(
            f"no teacher for {config.method}: name its network, such as --config.teacher.network=resnet56; its weights "
            "are not needed"
        )
    if not shapes_only and not places:
        raise ValueError(
            f"teacher.weights is not set: method {config.method!r} needs a trained teacher; give a file of weights or "
            "the folder of a run that trained one, --config.teacher.weights=PATH"
        )
    networks = config.teacher.network
    names = [] if networks is None else [name.strip() for name in networks.split(",")]
    if places and names and len(names) != places:
        raise ValueError(
            f"teacher.network names {len(names)} networks, but teacher.weights has {places} paths: give as many "
            "networks as paths"
        )
    count = len(names) or places
    if count > 1 and locally_taught(config):
        raise ValueError(f"{count} teachers for local.auxiliary={TEACHER}: give one, or use another method")
    return names


def _objectives(config: ConfigDict) -> tuple[str, ...]:
    """The objectives in use, whose keys have their names."""
    return objectives_in_use({"method": config.method, "combined.objectives": config.combined.objectives})


def _check_optimization(config: ConfigDict) -> None:
    settings = config.optimizer
    check_schedule(
        settings.schedule,
        settings.learning_rate,
        epochs=config.epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_rate=settings.warmup_rate,
        milestones=settings.milestones,
        decay=settings.decay,
    )
    check_optimizer(
        settings.name,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        dot=settings.dot,
    )
    if config.steps is not None:
        check_accumulate(settings.accumulate, config.steps)


def _check_context(config: ConfigDict) -> None:
    """Refuses contexts of more preceding modules than there are."""
    recent, image = read_context(config.local.context)
    preceding = config.local.modules - 1
    if config.method == "contsup" and config.local.memory_budget is None and recent > max(preceding, 1):
        raise ValueError(
            f"local.context is {config.local.context}, but the last of {config.local.modules} modules has {preceding} "
            f"before it: use R{preceding}{'E' * image}, or more modules"
        )
