"""Plots the curves of a run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kd_local.contract import Method, trained_programs
from kd_local.files import replacing
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
    figure.suptitle(title, parse_math=False)
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
    figure = draw_curves(records, steps, method=method, title=title)
    with replacing(path) as file:
        figure.savefig(file, dpi=100, format="png")


def _draw_losses(panel: Axes, program: str, records: Sequence[EpochRecord], steps: Sequence[StepRecord]) -> None:
    batches, means = _losses(program, steps), _losses(program, records)
    panel.plot(*batches, color="0.75", label="single batches")
    panel.plot(*means, marker=_marker(records), label="mean over the epoch")
    panel.set_yscale("log" if all(loss > 0 for loss in (*batches[1], *means[1])) else "linear")
    panel.set_title(program, fontsize="medium")
    panel.set_ylabel("training loss")
    panel.legend(fontsize="x-small")


def _losses(program: str, records: Sequence[EpochRecord | StepRecord]) -> tuple[list[int], list[float]]:
    """Steps and losses of the records that have one."""
    has = [record for record in records if "loss" in record.train.get(program, {})]
    return [record.step for record in has], [record.train[program]["loss"] for record in has]


def _draw_accuracies(panel: Axes, records: Sequence[EpochRecord], deployed: str | None) -> None:
    curves = {"test": [(record.step, record.test.accuracy) for record in records]}
    curves["validation"] = [(record.step, record.validation.accuracy) for record in records if record.validation]
    measured = [record for record in records if "accuracy" in record.train.get(deployed or "", {})]
    curves["training"] = [(record.step, record.train[deployed or ""]["accuracy"]) for record in measured]
    marker = _marker(records)
    for name, points in curves.items():
        if points:
            panel.plot(*zip(*points, strict=True), marker=marker, label=name, zorder=3)
    exits = list(records[-1].test.exits)
    colors = matplotlib.colormaps["viridis"].resampled(len(exits) or 1)
    for i, name in enumerate(exits):
        points = [(record.step, record.test.exits[name].accuracy) for record in records if name in record.test.exits]
        panel.plot(
            *zip(*points, strict=True),
            marker=marker,
            markersize=3,
            linewidth=0.8,
            color=colors(i),
            label=f"test, {name}",
        )
    panel.set_title("accuracy", fontsize="medium")
    panel.set_ylabel("accuracy")


def _marker(records: Sequence[EpochRecord]) -> str | None:
    return "o" if len(records) == 1 else None
