"""The results of a run that has ended: its summary and curves, on disk and on the screen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from experiments.folders import workdirs
from experiments.from_config.experiment import Experiment
from experiments.tables import say, summary_table, terminal_table
from experiments.train.summary import summarise
from kd_local.contract import HasTeachers, State
from kd_local.data import Data
from kd_local.files import replace_text
from kd_local.sizes import shown_bytes
from kd_local.training.evaluation import compare
from kd_local.training.logging import read_epochs, read_steps
from kd_local.training.plots import CURVES, plot_curves


def title_of(experiment: Experiment, config: ConfigDict) -> str:
    """The run on one line: method, network, data, and how the network is cut or taught."""
    how = f"K={experiment.modules} {experiment.context}" if experiment.context else "end to end"
    if config.teacher.weights is not None and isinstance(experiment.method, HasTeachers):
        how = f"teacher {config.teacher.network or config.teacher.weights}"
    return f"{config.method} {config.network.name} on {config.data.name}, {how}, seed {config.seed}"


def write_results(
    experiment: Experiment,
    config: ConfigDict,
    state: State,
    compared: Mapping[str, float],
    costs: Mapping[str, int | float | None],
    workdir: Path,
) -> dict[str, Any]:
    """Writes the summary and the curves, and returns the summary."""
    records = read_epochs(workdir)
    summary = summarise(experiment, config, state, records, compared, costs)
    replace_text(workdir / workdirs.SUMMARY, json.dumps(summary, indent=2) + "\n")
    title = title_of(experiment, config)
    plot_curves(records, read_steps(workdir), workdir / CURVES, method=experiment.method, title=title)
    return summary


def show(console: Console, summary: Mapping[str, Any], workdir: Path) -> None:
    """Prints the summary as tables, and where the curves are."""
    shown = {name: value for name, value in summary.items() if name != "exits"}
    console.print(summary_table({**shown, "peak_bytes": shown_bytes(summary["peak_bytes"])}))
    if summary["exits"]:
        exits = summary["exits"]
        columns = {
            "exit": list(exits),
            "test accuracy": [f"{values['test_accuracy']:.4f}" for values in exits.values()],
            "multiply-adds, of the whole network": [
                f"{values['share']:.3f}" if "share" in values else "" for values in exits.values()
            ],
        }
        console.print(terminal_table(columns, title="other exits", left=("exit",)))
    say(console, f"curves: {workdir / CURVES}")


def compared_with_teachers(experiment: Experiment, config: ConfigDict, state: State, data: Data) -> dict[str, float]:
    """The teachers' accuracy, and the share of test images on which student and teachers agree; {} without teachers."""
    method = experiment.method
    if not isinstance(method, HasTeachers):
        return {}
    accuracy, agreement = compare(method, state, data, batch_size=config.batch_size, mesh=experiment.mesh)
    return {"teacher_accuracy": accuracy, "agreement": agreement}
