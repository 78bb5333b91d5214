"""Curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kd_local.training.loop import Record

CURVES = "curves.png"


def plot_curves(records: Sequence[Record], steps: Sequence[Record], path: Path, *, title: str) -> None:
    """A panel for each module's training loss over steps (epochs' means, single batches pale), and one for accuracy
    (the exits' pale)."""
    losses = [name for name in records[-1] if name.startswith("train/") and name.endswith("/loss")]
    evaluated = [name for name in records[-1] if name.endswith("/accuracy") and not name.startswith("train/")]
    exits = [name for name in evaluated if name.startswith("test/") and name.count("/") > 1]
    accuracies = [name for name in evaluated if name.count("/") == 1] + [losses[-1].removesuffix("/loss") + "/accuracy"]
    columns = min(4, len(losses) + 1)
    rows = -(-(len(losses) + 1) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    epochs = [record["step"] for record in records]
    marker = "o" if len(epochs) == 1 else None
    for panel, name in zip(panels, losses, strict=False):
        batch = "batch" + name.removeprefix("train")
        panel.plot([record["step"] for record in steps], [record[batch] for record in steps], color="0.75")
        panel.plot(epochs, [record[name] for record in records], marker=marker)
        panel.set_title(name.split("/")[1], fontsize="medium")
        panel.set_ylabel("training loss")
    last = panels[len(losses)]
    for i, name in enumerate(exits):
        label = "test, each exit" if i == 0 else None
        last.plot(epochs, [record[name] for record in records], color="0.8", label=label)
    for name in accuracies:
        if name in records[-1]:
            last.plot(epochs, [record[name] for record in records], marker=marker, label=name.split("/")[0])
    last.set_title("accuracy", fontsize="medium")
    last.legend()
    for panel in panels[len(losses) + 1 :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(losses) + 1 - columns) : len(losses) + 1]:
        panel.set_xlabel("step")
    figure.savefig(path, dpi=100)
