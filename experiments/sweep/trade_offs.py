"""Plots the test errors of a sweep over the memory and the time of a step, both relative to end-to-end training."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.sweep.table import Line
from kd_local.files import replacing

TRADE_OFFS = "trade_offs.png"

Point = tuple[float, float]
"""`(cost, error)`."""


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, by rising cost: the points for which no other has a lower error at the same or a lower cost.

    >>> front([(1.0, 5.0), (2.0, 6.0), (3.0, 2.0), (1.0, 7.0)])
    [(1.0, 5.0), (3.0, 2.0)]
    """
    found: list[Point] = []
    for point in sorted(set(points)):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def labels(rows: Sequence[str]) -> list[str]:
    """The rows without the options that are not needed to tell them apart.

    >>> labels(["network=resnet32,method=end_to_end", "network=resnet32,method=greedy,k=4"])
    ['method=end_to_end', 'method=greedy']
    """
    found = list(rows)
    for item in dict.fromkeys(item for row in rows for item in row.split(",")):
        shorter = [",".join(each for each in row.split(",") if each != item) for row in found]
        if all(shorter) and len(set(shorter)) == len(set(rows)) and _only_value(item, rows):
            found = shorter
    return found


def _only_value(item: str, rows: Sequence[str]) -> bool:
    """Whether an option has one value in all rows that have it."""
    name = item.partition("=")[0] + "="
    return {each for row in rows for each in row.split(",") if each.startswith(name)} == {item}


def draw_trade_offs(lines: Sequence[Line], *, title: str) -> Figure | None:
    """A panel for each cost that two or more rows have, with the Pareto front as a line; None without a panel."""
    panels = {}
    for label, cost in (
        ("peak memory of a step, relative to end to end", "peak_of_end_to_end"),
        ("time of a step, relative to end to end", "seconds_of_end_to_end"),
    ):
        known = {
            line.number: (getattr(line, cost), line.error, line.deviation or 0.0)
            for line in lines
            if line.error is not None and getattr(line, cost) is not None
        }
        if len(known) > 1:
            panels[label] = known
    if not panels:
        return None
    shown = [line for line in lines if any(line.number in known for known in panels.values())]
    names = dict(zip((line.number for line in shown), labels([line.row for line in shown]), strict=True))
    figure = Figure(figsize=(6.5 * len(panels) + 3.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    for i, (axes, (label, known)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True)
    ):
        _draw(axes, label, known, {number: names[number] for number in known})
        if i == len(panels) - 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    return figure


def plot_trade_offs(lines: Sequence[Line], path: Path, *, title: str) -> bool:
    """Writes the picture. Returns False if there was nothing to draw."""
    figure = draw_trade_offs(lines, title=title)
    if figure is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=120, format="png")
    return figure is not None


def _draw(axes: Axes, label: str, known: dict[int, tuple[float, float, float]], names: dict[int, str]) -> None:
    for number, (cost, error, deviation) in known.items():
        axes.errorbar(
            cost, error, deviation, color=f"C{number % 10}", marker="o", capsize=3, label=f"{number} {names[number]}"
        )
        axes.annotate(str(number), (cost, error), xytext=(4, 4), textcoords="offset points", fontsize="small")
    best = front([(cost, error) for cost, error, _ in known.values()])
    axes.plot(*zip(*best, strict=True), color="0.5", zorder=0, drawstyle="steps-post", label="Pareto front")
    axes.axvline(1.0, color="0.8", linestyle=":", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("test error %")
