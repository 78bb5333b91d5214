"""The process of a row of the speed table, as the program sees it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.ending import ENDING
from experiments.speed.rows import SpeedRow


class RowProcess:
    """The process of a row."""

    def __init__(self, row: SpeedRow, request: dict[str, Any], log: Path, memory: float) -> None:
        self.row, self.log = row, log
        self.known: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        fraction = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{memory:.4f}"}
        log.unlink(missing_ok=True)  # it may be a link
        with log.open("x") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.speed.row_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **fraction},
            )
        ENDING.at_end(self.process.kill)
        self.ask(request)

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request, without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """The next answer; None if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def error(self) -> str:
        """The last line that the process wrote before it ended."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.process.wait()}"
