"""The folder of a run: its name, and the run that it belongs to.

A run is identified by its differences from the default config. A key that is missing in one of two configs has its
default there, so a folder survives an update that adds keys. Some keys are free: a step computes the same with any
value, so a run may resume with another one.

- `data.data_dir`, `data.workers`: where the images are, and how many processes decode them.
- `mesh`: how the same step is divided among devices. The exception is `mesh.batch_norm=device` on several devices:
  each normalises its own part of the batch, so this and the number of devices bind.
- `checkpoint`: how often checkpoints are saved, and how many are kept.
- `distributed`: how long processes wait for each other.
- `steps`: where the run ends; the learning rate depends on `epochs` only.
- `teacher.cache`: its folder. Whether there is a cache binds: with one the state has no teacher.

A recorded key that this version does not know has an unknown effect: it binds, unless its value is null (not set).
"""

import glob
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import default
from kd_local import __version__
from kd_local.files import replace_text
from kd_local.training.optimizers import MOMENTUM
from kd_local.training.schedules import DECAY, WARMUP_RATE

CONFIG = "config.json"
SUMMARY = "summary.json"
_VERSION = "kd_local"
"""The key of `config.json` under which the version that wrote it is recorded."""
_OPTIMIZER = "optimizer."
_FREE = ("data.data_dir", "data.workers", "mesh.", "checkpoint.", "distributed.", "steps", _VERSION)


def default_workdir(config: ConfigDict, root: Path = Path("runs")) -> Path:
    """The folder of this run in `root`, or the one to make: named by what the run is and a digest of its identity.

    An older version may have computed another digest, so folders of any digest are looked at.
    """
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    words = [config.method, config.network.name, config.data.name]
    if config.method == "contsup":
        words += [f"k{config.local.modules}", config.local.context]
    stem = "-".join([*words, f"seed{config.seed}"])
    named = root / f"{stem}-{digest}"
    older = () if named.exists() else sorted(root.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * 8}"))
    return next((folder for folder in older if belongs(folder, config)), named)


def belongs(folder: Path, config: ConfigDict) -> bool:
    """Whether the folder holds a run of this config."""
    try:
        return identity(_recorded(folder)) == identity(config)
    except (OSError, ValueError):
        return False


def claim(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and write the config into it, or find there the same config.

    Raises:
        ValueError: the folder belongs to a run of another config, or cannot be used.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / CONFIG).exists():
            _check(workdir, config)
        replace_text(workdir / CONFIG, json.dumps({**config.to_dict(), _VERSION: __version__}, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"workdir {str(workdir)!r} cannot be used: {error.strerror}; use another --workdir") from None


def identity(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The values by which a run differs from the default one, by key: equal for equal runs."""
    values = _effective(config)
    return {key: value for key, value in values.items() if value != _DEFAULTS.get(key)}


def _check(workdir: Path, config: ConfigDict) -> None:
    recorded = _recorded(workdir)
    old, new = identity(recorded), identity(config)
    if old == new:
        return
    differences = []
    for key in sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)):
        there, now = (json.dumps(values.get(key, _DEFAULTS.get(key))) for values in (old, new))
        differences.append(f"  {key}: {there} there, {now if key in _DEFAULTS or key in new else 'no such key'} now")
    version = recorded.get(_VERSION, "of an earlier version")
    use = "" if version == __version__ else f"kd_local {version} wrote it, this is {__version__}: use that version, or "
    raise ValueError(
        f"workdir {str(workdir)!r} holds a run of another config:\n"
        + "\n".join(differences)
        + f"\n{use}use another --workdir, or remove that folder"
    )


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        recorded = json.loads((folder / CONFIG).read_text())
    except json.JSONDecodeError:
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(f"{str(folder / CONFIG)!r} is damaged: restore it, or use another --workdir")
    return recorded


def _effective(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """All values that bind, as JSON has them; a key that is not given has its default."""
    values = {**_flat(default.get_config()), **_flat(config)}
    normalised = values["mesh.batch_norm"]
    if normalised == "device":  # the same as "global" on one device
        normalised = f"device, of {values['mesh.data']}" if values["mesh.data"] > 1 else "global"
    if values["teacher.cache"] is not None:
        values["teacher.cache"] = "a folder"
    values |= _effective_optimizer(
        {key.rpartition(".")[2]: values[key] for key in values if key.startswith(_OPTIMIZER)}
    )
    binding = {key: value for key, value in values.items() if not key.startswith(_FREE)}
    return {**binding, "mesh.batch_norm": normalised}


def _effective_optimizer(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the optimizer and the schedule use. Earlier versions recorded values for those that take none."""
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


def _flat(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": inner for name, inner in _flat(value).items()})
        else:
            flat[key] = value
    return flat


_DEFAULTS = _effective(default.get_config())
