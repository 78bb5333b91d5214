"""The picture of the speed table: bars for the time, ratios, memory and compilation of each row."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.speed.rows import PYTORCH
from kd_local.sizes import MIB

Row = Mapping[str, Any]


def draw(results: Sequence[Row], *, title: str) -> Figure:
    """A panel for each figure that a row has. PyTorch's bars are grey.

    Milliseconds of a step: the median as a bar, least and most as whiskers, the host's part as a point.
    """
    panels = [panel for panel in _PANELS if any(one[name] is not None for one in results for name in panel[1])]
    figure = Figure(figsize=(3.5 + 3.0 * len(panels), 1.3 + 0.32 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    colors = ["0.7" if one["framework"] == PYTORCH else "C0" for one in results]
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, names, unit) in zip(all_axes, panels, strict=True):
        first, *others = names
        axes.barh(range(len(results)), [(one[first] or 0.0) / unit for one in results], color=colors)
        for name in others:
            values = [float("nan") if one[name] is None else one[name] / unit for one in results]
            axes.plot(values, range(len(results)), color="0.2", linestyle="", marker="o", markersize=4)
        axes.set_xlim(left=0)
        axes.set_xlabel(heading)
    seconds = [one["seconds"] * 1e3 for one in results]
    whiskers = [
        [median - one["least"] * 1e3 for one, median in zip(results, seconds, strict=True)],
        [one["most"] * 1e3 - median for one, median in zip(results, seconds, strict=True)],
    ]
    all_axes[0].errorbar(
        seconds, range(len(results)), xerr=whiskers, color="0.2", linestyle="", elinewidth=1, capsize=2
    )
    all_axes[0].set_yticks(range(len(results)), [name_of(one) for one in results], parse_math=False)
    all_axes[0].invert_yaxis()
    figure.suptitle(title, fontsize="medium", parse_math=False)
    return figure


# Heading, the figures (a bar, then points), and their unit.
_PANELS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("ms of a step (point: host)", ("seconds", "host_seconds"), 1e-3),
    ("images a second", ("images_per_second",), 1.0),
    ("ratio to end to end", ("of_end_to_end",), 1.0),
    ("ratio to PyTorch", ("of_pytorch",), 1.0),
    ("share of the peak speed, %", ("of_peak",), 0.01),
    ("peak, MiB (point: measured)", ("predicted_bytes", "measured_bytes"), MIB),
    ("compilation, s (point: from cache)", ("compile_seconds", "cached_seconds"), 1.0),
)


def name_of(one: Row) -> str:
    """The name of a row: method, context, K, form and dtype."""
    modules = f"K={one['modules']}" if one["context"] else None
    framework = PYTORCH if one["framework"] == PYTORCH else None
    return " ".join(filter(None, [one["method"], one["context"], modules, framework, one["form"], one["dtype"]]))
