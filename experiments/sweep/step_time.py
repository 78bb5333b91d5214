"""The time of a row's step, and the file in which a sweep keeps the times of its rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.contradictions import step_form
from experiments.folders.identity import options
from kd_local.files import DamagedFileError, read_json, replace_text

_FILE, _REQUEST = "step_times.json", "step_times.request.json"
_FREE = (
    "seed", "epochs", "steps", "checkpoint.", "distributed.", "data.data_dir", "teacher.weights",
    "optimizer.schedule_steps", "optimizer.warmup_epochs", "optimizer.milestones",
)  # fmt: skip
"""Keys that do not change a step's time."""


@dataclass(frozen=True)
class StepTime:
    """The time of a row's step, timed in turn with other rows.

    A step has the images of one update of the parameters: with `optimizer.accumulate`, those of several batches.

    Attributes:
        seconds: median of the rounds' seconds a step.
        lowest, highest: of the rounds.
        of_end_to_end: median of the rounds' ratios to end-to-end training of the same network, images and form.
        peak_of_end_to_end: predicted peak memory of a step, relative to that of end-to-end training.
        multiply_adds: those of a step, gradients included.
        rounds: number of rounds.
        device: kind of the device.
        jax: version of JAX.
    """

    seconds: float
    lowest: float
    highest: float
    of_end_to_end: float
    peak_of_end_to_end: float
    multiply_adds: int
    rounds: int
    device: str
    jax: str


def of_step(config: ConfigDict) -> dict[str, Any]:
    """The values of a config that can change the time of a step: options, the step's form, and the devices."""
    found = {key: value for key, value in options(config).items() if not key.startswith(_FREE)}
    return {**found, "form": step_form(config), "mesh": [config.mesh.data, config.mesh.module]}


def known_times(workdir: Path, configs: Mapping[str, ConfigDict]) -> dict[str, StepTime]:
    """The times in the folder, by row, of the rows whose values are still these."""
    found = _read(workdir)
    names = {field.name for field in fields(StepTime)}
    return {
        row: StepTime(**found[row]["time"])
        for row, config in configs.items()
        if row in found
        and found[row]["options"] == _as_json(of_step(config))
        and found[row]["time"].keys() == names  # of this version
    }


def add_times(workdir: Path, configs: Mapping[str, ConfigDict], times: Mapping[str, StepTime]) -> None:
    """Adds times of rows to those in the folder."""
    new = {row: {"options": of_step(configs[row]), "time": asdict(each)} for row, each in times.items()}
    replace_text(workdir / _FILE, json.dumps({**_read(workdir), **new}, indent=2) + "\n")


def write_request(workdir: Path, configs: Mapping[str, ConfigDict]) -> Path:
    """Writes the configs of the rows to time to a file in the folder. Returns its path."""
    path = workdir / _REQUEST
    replace_text(path, json.dumps({row: config.to_dict() for row, config in configs.items()}))
    return path


def _read(workdir: Path) -> dict[str, Any]:
    try:
        return read_json(workdir / _FILE, {}, way_out="the same command measures again")
    except (OSError, DamagedFileError):
        return {}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
