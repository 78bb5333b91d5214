"""The record of a run's starts: the command, the versions, the device and the commit of each."""

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from kd_local import __version__
from kd_local.files import append_json, read_json_lines
from kd_local.training.records import EpochRecord, StepRecord, TrainingPlan

STARTS = "starts.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class StartRecord:
    """An observer that appends a line to the folder of the run at each start that trains.

    A line has `time` (UTC), `step` (steps done before), `command`, `versions`, `device`, `commit` (of the checkout with
    this package; None without one) and `changed` (whether files of the checkout differ from the commit).

    Args:
        workdir: the folder of the run.
        module: the program that trains, such as `experiments.train`.
    """

    def __init__(self, workdir: Path, module: str) -> None:
        self._path, self._module = workdir / STARTS, module

    def on_start(self, plan: TrainingPlan) -> None:
        if plan.first_step < plan.last_step:
            append_json(self._path, {"step": plan.first_step, **surroundings(self._module)})

    def on_step(self, record: StepRecord) -> None: ...

    def on_epoch(self, record: EpochRecord) -> None: ...


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; empty for runs of versions that did not record them."""
    return read_json_lines(workdir / STARTS, dict)


def surroundings(module: str) -> dict[str, Any]:
    """The command of this process and what it runs on, see `StartRecord`."""
    commit, changed = checkout(Path(__file__).parent)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "versions": {"kd_local": __version__, "python": platform.python_version(), **_versions()},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": commit,
        "changed": changed,
    }


def checkout(folder: Path) -> tuple[str | None, bool | None]:
    """`(commit, whether files differ from it)` of the git checkout of a folder; `(None, None)` without one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit.strip(), bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
