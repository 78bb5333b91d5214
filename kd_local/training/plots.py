"""Plots the curves of a run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kd_local.contract import Method, trained_programs
from kd_local.training.records import EpochRecord, StepRecord

CURVES = "curves.png"


def draw_curves(records: Sequence[EpochRecord], steps: Sequence[StepRecord], *, method: Method, title: str) -> Figure:
    """The curves of a run over its steps.

    A panel for each program that trains shows its loss, on a log scale if all values are positive. The last panel shows
    the accuracies of the deployed network and of every exit.
    """
    programs = trained_programs(method)
    panels = len(programs) + 1
    columns = min(4, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.2 * columns + 1.6, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, program in zip(axes, programs, strict=False):
        _draw_losses(panel, program, records, steps)
    _draw_accuracies(axes[len(programs)], records, method.deployed_program)
    for panel in axes[:panels]:
        panel.set_xlabel("step")
    for panel in axes[panels:]:
        panel.set_axis_off()
    figure.legend(*axes[len(programs)].get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    return figure


def plot_curves(
    records: Sequence[EpochRecord], steps: Sequence[StepRecord], path: Path, *, method: Method, title: str
) -> None:
    """Draws the curves and writes the picture to `path`."""
    draw_curves(records, steps, method=method, title=title).savefig(path, dpi=100)


def _draw_losses(panel: Axes, program: str, records: Sequence[EpochRecord], steps: Sequence[StepRecord]) -> None:
    batches = [record.train[program]["loss"] for record in steps]
    means = [record.train[program]["loss"] for record in records]
    panel.plot([record.step for record in steps], batches, color="0.75", label="single batches")
    panel.plot([record.step for record in records], means, marker=_marker(records), label="mean over the epoch")
    panel.set_yscale("log" if min(batches + means) > 0 else "linear")
    panel.set_title(program, fontsize="medium")
    panel.set_ylabel("training loss")
    panel.legend(fontsize="x-small")


def _draw_accuracies(panel: Axes, records: Sequence[EpochRecord], deployed: str | None) -> None:
    curves = {"test": [record.test.accuracy for record in records]}
    if all(record.validation for record in records):
        curves["validation"] = [record.validation.accuracy for record in records if record.validation]
    if deployed is not None:
        curves["training"] = [record.train[deployed]["accuracy"] for record in records]
    at = [record.step for record in records]
    for name, values in curves.items():
        panel.plot(at, values, marker=_marker(records), label=name, zorder=3)
    exits = list(records[-1].test.exits)
    colors = matplotlib.colormaps["viridis"].resampled(len(exits) or 1)
    for i, name in enumerate(exits):
        values = [record.test.exits[name].accuracy for record in records]
        panel.plot(
            at, values, marker=_marker(records), markersize=3, linewidth=0.8, color=colors(i), label=f"test, {name}"
        )
    panel.set_title("accuracy", fontsize="medium")
    panel.set_ylabel("accuracy")


def _marker(records: Sequence[EpochRecord]) -> str | None:
    return "o" if len(records) == 1 else None
