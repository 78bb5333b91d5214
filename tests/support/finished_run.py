"""The folder of a run that is done, without training."""

import json
from pathlib import Path

from experiments.sweep.rows import Rows, Run


def finished_run(rows: Rows, run: Run, workdir: Path, *, error: float, **changes) -> Path:
    """Writes the files of a finished run with this test error."""
    config = rows.config(run)
    folder = run.folder(workdir)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    summary = {
        "method": config.method, "network": config.network.name, "dataset": config.data.name,
        "modules": config.local.modules, "epochs": config.epochs, "steps": 7, "test_accuracy": 1 - error / 100,
        "train_seconds": 10.0 + run.seed, "images_per_second": 100.0, "parameters_trained": 2000,
        "parameters_deployed": 1000, "multiply_adds": 5000, **changes,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
