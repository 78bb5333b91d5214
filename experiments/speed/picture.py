"""The picture of the speed table: a bar for each row, from its fastest to its slowest round."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.speed.rows import PYTORCH


def draw(results: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Milliseconds of a step: the median as a bar, least and most as its whiskers. PyTorch's bars are grey."""
    figure = Figure(figsize=(8.0, 1.2 + 0.32 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    medians = [one["seconds"] * 1e3 for one in results]
    whiskers = [
        [median - one["least"] * 1e3 for one, median in zip(results, medians, strict=True)],
        [one["most"] * 1e3 - median for one, median in zip(results, medians, strict=True)],
    ]
    colors = ["0.6" if one["framework"] == PYTORCH else "C0" for one in results]
    axes.barh(range(len(results)), medians, xerr=whiskers, color=colors, ecolor="0.2", capsize=2)
    axes.set_yticks(range(len(results)), [name_of(one) for one in results], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step")
    axes.set_title(title, fontsize="medium", parse_math=False)
    return figure


def name_of(one: Mapping[str, Any]) -> str:
    """The name of a row: method, context, K, form and dtype."""
    modules = f"K={one['modules']}" if one["context"] else None
    framework = PYTORCH if one["framework"] == PYTORCH else None
    return " ".join(filter(None, [one["method"], one["context"], modules, framework, one["form"], one["dtype"]]))
