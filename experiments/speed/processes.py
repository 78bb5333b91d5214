"""The process of a row of the speed table, as the program sees it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.ending import ENDING
from experiments.folders.compilation_cache import VARIABLE
from experiments.speed.rows import SpeedRow


class RowProcess:
    """The process of a row.

    Args:
        row: the row.
        request: what else the process needs: config and steps.
        log: file for what the process writes on standard error.
        cache: folder of the row's executables.
    """

    def __init__(self, row: SpeedRow, request: dict[str, Any], log: Path, cache: Path) -> None:
        self.row, self.log = row, log
        environment = {
            # All rows are on the device at once, so that none may take all memory.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
            VARIABLE: str(cache / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
        }
        log.unlink(missing_ok=True)  # it may be a link
        with log.open("x") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.speed.row_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        ENDING.at_end(self.process.kill)
        self.ask({"row": asdict(row), **request})

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request, without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """The next answer; None if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> None:
        """Ends the process, so that its memory is free."""
        self.process.kill()
        self.process.wait()

    def error(self) -> str:
        """The last line that the process wrote before it ended."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.process.wait()}"


_ROOT = str(Path(__file__).parents[2])
