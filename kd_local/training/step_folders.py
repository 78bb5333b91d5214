"""The folders of a run's checkpoints: finds complete and damaged ones, and checks their step and their run."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kd_local.files import read_json, replace_text, sync
from kd_local.training.manifest import MANIFEST, damage, write_manifest

ORIGIN = "origin.json"
"""The file with a checkpoint's step and the facts of its run. Checkpoints of earlier versions do not have it."""

_ASIDE = ".damaged"


class CheckpointError(Exception):
    """A checkpoint could not be saved or restored. The message has the checkpoint, the reason, and what remains."""


@dataclass(frozen=True)
class StepFolders:
    """The checkpoints in a directory, with a folder for each step.

    Attributes:
        directory: the directory.
        run: the facts that the run depends on, by name; JSON values.
        report: called with a sentence about each checkpoint that is damaged or unfinished.
    """

    directory: Path
    run: Mapping[str, Any] | None
    report: Callable[[str], None]

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps that have a folder, in order."""
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def seal(self, step: int, records: Iterable[Path], *, keep: int) -> None:
        """Completes a checkpoint whose files are written, and deletes older checkpoints.

        Args:
            step: the step of the checkpoint.
            records: files that are flushed to the disk before the checkpoint is complete, if they exist.
            keep: number of checkpoints to keep.
        """
        for path in records:
            if path.exists():
                sync(path)
        origin = {"step": step, "run": self.run}
        replace_text(self.folder(step) / ORIGIN, json.dumps(origin, indent=1))
        write_manifest(self.folder(step))
        for old in self.steps()[:-keep]:
            shutil.rmtree(self.folder(old))

    def newest_good(self) -> tuple[int | None, dict[int, str]]:
        """The step of the newest complete checkpoint, and the damage of each newer checkpoint.

        Raises:
            CheckpointError: a file cannot be read, so the state of its checkpoint is unknown.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._readable(self.steps)):
            what = self._readable(partial(damage, self.folder(step)))
            if what is None:
                return step, damaged
            damaged[step] = what
        return None, damaged

    def choose(self) -> int | None:
        """The newest complete checkpoint, after damaged ones were moved aside; None if no step was ever completed.

        Raises:
            CheckpointError: a file cannot be read, all checkpoints are damaged, or the newest complete checkpoint is
                of another step or run. Nothing is moved then.
        """
        good, damaged = self.newest_good()
        aside = self._readable(lambda: sorted(self.directory.glob(f"*{_ASIDE}*")))
        if good is None:
            self._readable(lambda: self._check_nothing_is_lost(damaged, aside))
        else:
            self._readable(lambda: self._check_origin(good))
        used = "training starts from the beginning" if good is None else f"using checkpoint {good}"
        if good is not None and damaged:
            for old in aside:
                shutil.rmtree(old)
        for step, what in damaged.items():
            self.report(f"checkpoint {step} is {what}: {used}")
            os.replace(self.folder(step), self._name_aside(step))
        return good

    def remove_unsealed(self, step: int) -> None:
        """Deletes the remains of a failed save of a step. A complete or unreadable checkpoint is kept."""
        try:
            what = damage(self.folder(step))
        except OSError:
            return
        if what is not None:
            shutil.rmtree(self.folder(step), ignore_errors=True)

    def _readable(self, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except OSError as error:
            few = error.errno in (errno.EMFILE, errno.ENFILE)
            way_out = "raise the limit (`ulimit -n`)" if few else "the same command resumes once it can be read"
            raise CheckpointError(
                f"{error.filename or self.directory} cannot be read ({error.strerror or error}): no checkpoint was "
                f"moved or deleted; {way_out}"
            ) from error

    def _check_nothing_is_lost(self, damaged: Mapping[int, str], aside: Iterable[Path]) -> None:
        """Checks that no step was ever completed: all folders are remains of a first save that was killed."""
        complete_once = [path.name for path in aside if (path / MANIFEST).exists()]
        unfinished = len(damaged) <= 1 and not any((self.folder(step) / MANIFEST).exists() for step in damaged)
        if unfinished and not complete_once:
            return
        found = [f"checkpoint {step} is {what}" for step, what in damaged.items()]
        found += [f"{name} was set aside" for name in complete_once]
        raise CheckpointError(
            f"{self.directory} has no checkpoint to resume from: {', '.join(found)}. Nothing was moved or deleted: "
            "restore the files, or remove that folder to start from the beginning"
        )

    def _check_origin(self, step: int) -> None:
        """Checks that a complete checkpoint is of this step and, if both runs are known, of this run."""
        path = self.folder(step) / ORIGIN
        origin: Mapping[str, Any] = {"step": step, "run": None}
        if path.exists():
            origin = read_json(path, {"step": int, "run": dict | None}, way_out="use another checkpoint")
        if origin["step"] != step:
            raise CheckpointError(
                f"{self.folder(step)} is checkpoint {origin['step']} by its contents: rename or remove that folder"
            )
        if self.run is None:
            return
        if origin["run"] is None:
            self.report(f"checkpoint {step} does not record its run, which is not compared")
        elif others := differences(origin["run"], self.run):
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is of another run:\n"
                + "".join(f"  {line}\n" for line in others)
                + "use the directory of this run, or remove that checkpoint"
            )

    def _name_aside(self, step: int) -> Path:
        name, number = f"{step}{_ASIDE}", 1
        while (self.directory / name).exists():
            number += 1
            name = f"{step}{_ASIDE}{number}"
        return self.directory / name


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each fact in which two runs differ. Inner mappings are compared key by key; a missing fact is null."""
    old, new = _flat(there), _flat(json.loads(json.dumps(now)))
    return [
        f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()}
        else:
            flat[key] = value
    return flat
