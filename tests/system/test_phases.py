"""Signals in each phase of a training run: it ends in time, and the same command resumes."""

import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.folders.folder_lock import LOCK
from tests.support.processes import ROOT, finish, newest_checkpoint

SECONDS = 5.0
SAVING_SECONDS = 20.0
"""The bound where the run saves first: the evaluation before is compiled."""
# The training program, in which a function takes longer.
PROGRAM = """
import importlib, sys, time
from unittest import mock
from absl import app
from experiments.ending import ENDING
ENDING.watch()
from experiments.train import __main__ as program

module, name, seconds = sys.argv.pop(1), sys.argv.pop(1), float(sys.argv.pop(1))
owner = importlib.import_module(module)
*inner, name = name.split(".")
for each in inner:
    owner = getattr(owner, each)
usual = getattr(owner, name)

def slow(*arguments, **more):
    global seconds
    print("here", flush=True)
    time.sleep(seconds)
    seconds = 0  # the first call only
    return usual(*arguments, **more)

with mock.patch.object(owner, name, slow):
    app.run(program.main, flags_parser=program.parse)
"""
SMALL = (
    "--config.epochs=2",
    "--config.data.train_examples=160",
    "--config.batch_size=32",
    "--config.local.modules=2",
    "--config.local.context=R1",
    "--config.optimizer.warmup_epochs=0",
)
LOOP, TRAIN = "kd_local.training.loop", "experiments.train.run"
PHASES: dict[str, tuple[str, str, float, tuple[str, ...]]] = {
    # Nothing would be lost: it ends at once.
    "data": (TRAIN, "facts_of_run", 60, ()),
    "measuring": (TRAIN, "placement", 60, ("--config.mesh.module=2", "--config.mesh.placement=time")),
    "compiling": (LOOP, "prepare_step", 60, ()),
    "restoring": (LOOP, "restore", 60, ()),
    "results": (TRAIN, "write_results", 60, ()),
    # The steps since the last checkpoint would be lost: it saves first.
    "evaluating": ("kd_local.training.evaluation", "Evaluator.__call__", 2, ()),
    "saving": ("kd_local.training.step_folders", "StepFolders.seal", 2, ("--config.checkpoint.seconds=0",)),
}
SAVES = ("evaluating", "saving")


@pytest.mark.usually("saving")
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_a_phase(tmp_path, phase):
    module, name, seconds, changes = PHASES[phase]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, module, name, str(seconds), f"--workdir={tmp_path}", *SMALL, *changes],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while (line := process.stdout.readline()) != "here\n":
        assert line, process.communicate()
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process, 60)
    assert time.monotonic() - sent < (SAVING_SECONDS if phase in SAVES else SECONDS)
    assert status == 143 and err.count("\n") == 1 and err.startswith("error: interrupted by SIGTERM"), err
    assert not (tmp_path / LOCK).exists()
    newest = newest_checkpoint(tmp_path)
    if phase in SAVES:
        assert int(re.search(r"after step (\d+); saved in", err)[1]) == newest > 0
    else:
        assert newest == (10 if phase == "results" else 0)
