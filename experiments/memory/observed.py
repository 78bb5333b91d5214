"""Measures the peak memory of a row's training step in its own process: python -m experiments.memory.observed < REQUEST

The process reads a request, `{"row": ..., "config": ..., "devices": ...}`, and prints `{"measured_bytes": ...}`. It
builds the method from the config and does not know the predicted peak.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs.of_json import tuples
from experiments.ending import ENDING
from experiments.memory.built_rows import build_row
from experiments.memory.rows import Row
from kd_local.memory import observed_peak


class ObservationError(Exception):
    """The measuring process ended without a result. The message has the reason."""


def observe(row: Row, base: ConfigDict, *, devices: int, environment: Mapping[str, str]) -> int | None:
    """Peak bytes of one device while real steps run on local devices; None if the platform does not report them.

    Raises:
        ObservationError: the process ended early.
    """
    request = {"row": asdict(row), "config": base.to_dict(), "devices": devices}
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    with (
        subprocess.Popen(
            [sys.executable, "-m", "experiments.memory.observed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**environment, "PYTHONPATH": paths},
        ) as process,
        ENDING.child(process),
    ):
        out, err = process.communicate(json.dumps(request))
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ObservationError(
            f"killed by {name}" + (", perhaps because memory ran out" if name == signal.SIGKILL.name else "")
        )
    if process.returncode > 0:
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        raise ObservationError(lines[-1] if lines else f"exit status {process.returncode}")
    measured: int | None = json.loads(out.splitlines()[-1])["measured_bytes"]
    return measured


def main() -> None:
    request = json.load(sys.stdin)
    base = ConfigDict(tuples(request["config"]))
    row = Row(**request["row"])
    built = build_row(row, base)
    measured = observed_peak(
        built.method,
        built.shape,
        base.batch_size,
        devices=request["devices"],
        options=built.options,
    )
    print(json.dumps({"measured_bytes": measured}))


if __name__ == "__main__":
    main()
