"""The folder of a run: its name, and a check that it belongs to this run, see `identity`."""

import glob
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.combination import COMBINED, combination
from experiments.configs.objectives import PAIRS
from experiments.folders.identity import VERSION, Differences, Identity, compare, options
from kd_local import __version__
from kd_local.files import DamagedFileError, read_json, replace_text
from kd_local.training.checkpoints import MANIFEST
from kd_local.training.step_folders import ORIGIN

CONFIG = "config.json"
FACTS = "identity.json"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
NOTHING: Mapping[str, Any] = {}
_WAY_OUT = "restore it, or use another --workdir"


def default_workdir(config: ConfigDict, root: Path = Path("runs")) -> Path:
    """The folder of this run in `root`, which may not exist yet. Its name has method, network, data and a digest.

    An older version may have computed another digest, so folders with any digest are considered. The same options with
    fewer epochs are the same run, if the schedule allows it: then the folder of the run with the most epochs is
    extended.
    """
    digest = hashlib.sha256(json.dumps(options(config), sort_keys=True).encode()).hexdigest()[:8]
    words = [config.method, config.network.name, config.data.name]
    if config.method == "contsup":
        words += [f"k{config.local.modules}", config.local.context]
    elif config.method == COMBINED:
        words.insert(1, "-".join(combination(config.combined.objectives)))
    elif config.method in PAIRS:
        words.append(f"k{config.local.modules}")
    stem = "-".join([*words, f"seed{config.seed}"])
    named = root / f"{stem}-{digest}"
    others = () if named.exists() else sorted(root.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * 8}"))
    epochs = {folder: recorded_config(folder).get("epochs", 0) for folder in others if belongs(folder, config)}
    return max((folder for folder in epochs if epochs[folder] <= config.epochs), key=epochs.__getitem__, default=named)


def differences(folder: Path, config: ConfigDict, facts: Mapping[str, Any] = NOTHING) -> Differences:
    """The differences between the run of a folder and this config and these facts.

    Raises:
        ValueError: the folder's records are damaged.
        OSError: they cannot be read.
    """
    return compare(recorded_identity(folder), Identity(options(config), facts))


def belongs(folder: Path, config: ConfigDict, facts: Mapping[str, Any] = NOTHING) -> bool:
    """True if the folder has a run of this config and, if it records them, of these facts."""
    try:
        found = differences(folder, config, facts)
    except (OSError, ValueError):
        return False
    return not found.refused and not found.undecided


def claim(
    workdir: Path, config: ConfigDict, facts: Mapping[str, Any] = NOTHING, last_step: int | None = None
) -> tuple[str, ...]:
    """Creates the folder with config and facts, or checks that an existing folder belongs to the same run.

    Returns the differences that do not change the run's numbers, and a note if the folder had no facts.

    Raises:
        ValueError: the folder belongs to another run, or cannot be used.
    """
    notes: tuple[str, ...] = ()
    known: dict[str, Any] = {}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / CONFIG).exists():
            notes, known = check(workdir, config, facts), dict(recorded_identity(workdir).facts)
            if last_step is not None:
                check_steps(workdir, last_step)
            if facts and not known:
                notes += (f"it has no {FACTS}, its images and teachers are taken to be those of now",)
        # The config comes last: without it the folder belongs to no run.
        if facts:
            replace_text(workdir / FACTS, json.dumps({**known, **facts}, indent=2) + "\n")
        replace_text(workdir / CONFIG, json.dumps({**config.to_dict(), VERSION: __version__}, indent=2) + "\n")
    except OSError as error:
        name = error.filename or workdir
        raise ValueError(
            f"workdir {str(workdir)!r} cannot be used: {name}: {error.strerror}; repair that, or use another --workdir"
        ) from None
    return notes


def check(workdir: Path, config: ConfigDict, facts: Mapping[str, Any] = NOTHING) -> tuple[str, ...]:
    """Checks that the folder has a run of this config and these facts. Returns the differences that change no number.

    Raises:
        ValueError: the folder has another run (the message names the differences key by key), or damaged records.
    """
    found = differences(workdir, config, facts)
    if not found.refused:
        return found.noted
    keys = [line.partition(":")[0].partition(".")[0] for line in found.refused]
    others = [
        name
        for name, is_meant in (
            ("config", any(key not in ("images", "teachers") for key in keys)),
            ("images", "images" in keys),
            ("teachers", "teachers" in keys),
        )
        if is_meant
    ]
    what = " and ".join(f"another {name}" if name == "config" else f"other {name}" for name in others)
    version = recorded_config(workdir).get(VERSION, "of an earlier version")
    use = "" if version == __version__ else f"kd_local {version} wrote it, this is {__version__}: use that version, or "
    raise ValueError(
        f"workdir {str(workdir)!r} holds a run of {what}:\n"
        + "".join(f"  {line}\n" for line in found.refused)
        + f"{use}use another --workdir, or remove that folder"
    )


def check_steps(workdir: Path, last_step: int) -> None:
    """Checks that the run in the folder has not done more steps than this start asks for.

    Raises:
        ValueError: it has done more, so its results are those of more steps.
    """
    saved = (path.parent for path in (workdir / CHECKPOINTS).glob(f"*/{MANIFEST}"))
    done = max((_step_of(checkpoint) for checkpoint in saved if checkpoint.name.isdecimal()), default=0)
    if done > last_step:
        raise ValueError(
            f"workdir {str(workdir)!r} holds a run that already has {done} steps, and this one ends after {last_step}: "
            "nothing is left to do there; use another --workdir, or more epochs or steps"
        )


def _step_of(checkpoint: Path) -> int:
    """The step of a checkpoint by its contents, which a renamed folder keeps; by its name where they do not have it."""
    try:
        return int(read_json(checkpoint / ORIGIN, {"step": int}, way_out=_WAY_OUT)["step"])
    except (OSError, ValueError):
        return int(checkpoint.name)


def recorded_config(folder: Path, *, way_out: str = _WAY_OUT) -> dict[str, Any]:
    """The config of the run in a folder, as the version that made it wrote it.

    Raises:
        ValueError: the file is damaged.
        OSError: the file cannot be read.
    """
    config = read_json(folder / CONFIG, {}, way_out=way_out)
    if not config:
        raise DamagedFileError(f"{str(folder / CONFIG)!r} is damaged (no keys): {way_out}")
    return config


def recorded_identity(folder: Path, *, way_out: str = _WAY_OUT) -> Identity:
    """The identity of the run in a folder; without facts if an earlier version made it.

    Raises:
        ValueError: the files of config or facts are damaged.
        OSError: they cannot be read.
    """
    recorded = recorded_config(folder, way_out=way_out)
    try:
        values = options(recorded)
    except (TypeError, KeyError, AttributeError):
        path = str(folder / CONFIG)
        raise DamagedFileError(f"{path!r} is damaged (a value of another type): {way_out}") from None
    try:
        facts = read_json(folder / FACTS, {}, way_out=way_out)
    except FileNotFoundError:
        return Identity(values)
    return Identity(values, facts)
