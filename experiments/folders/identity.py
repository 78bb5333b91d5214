"""The identity of a run: everything that its numbers depend on. It is compared with the identity of another start.

An identity has options and facts. The *options* are the values by which a config differs from the default config. A key
that is missing in one of two configs has its default there, so a run's folder stays valid after an update that adds
keys. The *facts* describe the files that the config names: digests of the images and of the teachers' weights, and
versions. They are saved in `identity.json`, in the same folder as `config.json`.

Some options are free: a step computes the same with any value of them, so a run may resume with another value.

- `data.data_dir`, `data.workers`: where the images are, and how many processes decode them.
- `step`, `steps_per_call`, `data.on_devices`: how the same step is compiled, and how many run at once.
- `mesh`: how the same step is divided over devices. The exception is `mesh.batch_norm=device` on several devices:
  each normalises its own part of the batch, so this option and the number of devices bind.
- `checkpoint`: how often checkpoints are saved, and how many are kept.
- `distributed`: how long processes wait for each other.
- `steps`: where the run ends; the learning rate depends on `epochs` only.
- `epochs`, if the schedule is constant or piecewise and has no `schedule_steps`: the learning rate of an epoch is the
  same in a longer run.
- `teacher.cache`: the folder of the cache. Whether there is a cache binds: with a cache the state has no teacher.
- `network.weights`: the path of the start weights. Whether there are any binds, and their digest.
- `teacher.weights`, if the digests of the weights are known.

A recorded key that this version does not know has an unknown effect: it binds, unless its value is null (not set).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.checks import unused
from kd_local.choices.optimization import DECAY, MOMENTUM, WARMUP_RATE

VERSION = "kd_local"
"""The key of `config.json` and of `identity.json` under which the version that wrote it is recorded."""
NOTED = (VERSION, "jax", "data.data_dir")
"""Facts that do not change the numbers of a run. A difference in them is reported, not refused."""

_OPTIMIZER = "optimizer."
_FREE = (
    "data.data_dir",
    "data.on_devices",
    "data.workers",
    "mesh.",
    "checkpoint.",
    "distributed.",
    "step",  # and the keys that begin with it
    VERSION,
)
_EXTENDABLE = ("constant", "piecewise")
_PATHS = "teacher.weights"
# Digests of a content and of its files. Equal files have equal content, but different files may have it too.
_OF_IMAGES = ("images.content", "images.files")
_OF_TEACHER = ("weights", "file")


@dataclass(frozen=True)
class Identity:
    """Everything that the numbers of a run depend on.

    Attributes:
        options: see `options`.
        facts: facts about images (`images.train`), teachers (`teachers.0.weights`) and versions (`jax`), as JSON
            values. Unknown facts are left out.
    """

    options: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def binding(self) -> dict[str, Any]:
        """The options and facts that a checkpoint must agree with.

        These facts are digests and numbers, which are the same in later versions. All other facts follow from options.
        """
        free = {"epochs"} if _extendable(self.options) else set()
        facts = {
            key: self.facts[key]
            for key in ("images.train", "images.classes", "teachers", "start.file")
            if key in self.facts
        }
        for pair in _digests(self.facts):
            # The digest of the content or, if it is not known, that of the files.
            facts |= {key: self.facts[key] for key in [key for key in pair if key in self.facts][:1]}
        if _teachers_known(self.facts, self.facts):
            free.add(_PATHS)
        return {key: value for key, value in self.options.items() if key not in free} | facts


@dataclass(frozen=True)
class Differences:
    """The differences between a recorded identity and the present one, with a line per key.

    Attributes:
        refused: differences that change the run's numbers.
        undecided: files that differ, whose content is not known on both sides.
        noted: differences that do not change the run's numbers.
    """

    refused: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()


def options(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The values by which a run differs from the default run, by key. Equal runs have equal options."""
    return {key: value for key, value in _effective(config).items() if value != _DEFAULTS.get(key)}


def compare(there: Identity, now: Identity) -> Differences:
    """The differences between a recorded identity and the present one. A fact is compared only if both have it."""
    free = {"epochs"} if _extendable(there.options) and _extendable(now.options) else set()
    refused: list[str] = []
    undecided: list[str] = []
    noted: list[str] = []
    same_teachers = _teachers_known(there.facts, now.facts)
    if same_teachers:
        free.add(_PATHS)
        if there.options.get(_PATHS) != now.options.get(_PATHS):
            noted.append(_line(_PATHS, there.options, now.options))
    keys = there.options.keys() | now.options.keys()
    for key in sorted(keys - free):
        if there.options.get(key) != now.options.get(key):
            unknown = key not in _DEFAULTS and key not in now.options
            refused.append(_line(key, there.options, now.options, "no such key" if unknown else None))
    digests = _digests({**there.facts, **now.facts})
    both = sorted(there.facts.keys() & now.facts.keys() - {name for pair in digests for name in pair})
    for key in both:
        if there.facts[key] != now.facts[key]:
            (noted if key in NOTED else refused).append(_line(key, there.facts, now.facts))
    for content, files in digests:
        pair = [(facts.get(content), facts.get(files)) for facts in (there.facts, now.facts)]
        (content_there, files_there), (content_now, files_now) = pair
        other_files = None not in (files_there, files_now) and files_there != files_now
        if content_there is not None and content_now is not None:
            if content_there != content_now:
                refused.append(_line(content, there.facts, now.facts))
            elif other_files:
                noted.append(f"{files}: other files, of the same content")
        elif other_files:
            known = content_there is not None or content_now is not None
            (undecided if known else refused).append(_line(files, there.facts, now.facts))
    return Differences(tuple(refused), tuple(undecided), tuple(noted))


def _line(key: str, there: Mapping[str, Any], now: Mapping[str, Any], instead: str | None = None) -> str:
    old, new = (_shown(values.get(key, _DEFAULTS.get(key))) for values in (there, now))
    return f"{key}: {old} there, {instead or new} now"


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) > 60 and value.isalnum() else json.dumps(value)


def _digests(keys: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of keys of a content's digest and of its files' digest, among these keys."""
    teachers = sorted({key.rpartition(".")[0] for key in keys if key.startswith("teachers.")})
    content, files = _OF_TEACHER
    return [_OF_IMAGES, *((f"{teacher}.{content}", f"{teacher}.{files}") for teacher in teachers)]


def _teachers_known(there: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """True if both identities have digests of the teachers, which are then compared instead of paths."""
    count = now.get("teachers", 0)
    if not count or there.get("teachers") != count:
        return False
    names = [(f"teachers.{i}.weights", f"teachers.{i}.file") for i in range(count)]
    return all(any(name in there and name in now for name in pair) for pair in names)


def _extendable(values: Mapping[str, Any]) -> bool:
    free = values.get("optimizer.schedule_steps") is None
    return free and values.get("optimizer.schedule", _DEFAULTS["optimizer.schedule"]) in _EXTENDABLE


def _effective(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """All values that bind, as JSON values. A key that is not given has its default."""
    defaults = flattened(default.get_config())
    values = {**defaults, **flattened(config)}
    # Earlier versions recorded values that have no effect.
    values |= {key: defaults[key] for key in unused(values) if key in defaults}
    normalised = values["mesh.batch_norm"]
    if normalised == "device":  # the same as "global" on one device
        normalised = f"device, of {values['mesh.data']}" if values["mesh.data"] > 1 else "global"
    if values["teacher.shortcut"] == "projection":  # the default of earlier versions, with the same meaning
        values["teacher.shortcut"] = None
    if values["teacher.cache"] is not None:
        values["teacher.cache"] = "a folder"
    if values["network.weights"] is not None:
        values["network.weights"] = "start weights"
    values |= _effective_optimizer(
        {key.rpartition(".")[2]: values[key] for key in values if key.startswith(_OPTIMIZER)}
    )
    binding = {key: value for key, value in values.items() if not key.startswith(_FREE)}
    return {**binding, "mesh.batch_norm": normalised}


def _effective_optimizer(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that optimizer and schedule use. Earlier versions also recorded values that they ignore."""
    momentum = MOMENTUM if values["momentum"] is None else values["momentum"]
    warmup_rate = WARMUP_RATE if values["warmup_rate"] is None else values["warmup_rate"]
    decay = DECAY if values["decay"] is None else values["decay"]
    sgd, piecewise = values["name"] == "sgd", values["schedule"] == "piecewise"
    return {
        "optimizer.momentum": momentum if sgd else None,
        "optimizer.nesterov": momentum > 0 and values["nesterov"] is not False if sgd else None,
        "optimizer.warmup_rate": warmup_rate if values["warmup_epochs"] else None,
        "optimizer.milestones": values["milestones"] if piecewise else None,
        "optimizer.decay": decay if piecewise else None,
    }


def flattened(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The values of a config as JSON values, by key, such as `local.context`."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}": inner for name, inner in flattened(value).items()})
        else:
            found[key] = value
    return found


_DEFAULTS = _effective(default.get_config())
