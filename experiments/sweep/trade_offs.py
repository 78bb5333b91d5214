"""Plots the test errors of a sweep over the memory and the time of a step, both relative to end-to-end training."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.sweep.table import Line
from kd_local.files import replacing

TRADE_OFFS = "trade_offs.png"

Point = tuple[float, float]
"""`(cost, error)`."""
Measured = tuple[float, float, float]
"""`(cost, error, deviation of the error)`."""

_MARKERS = ("o", "s", "^", "D", "v")  # colours repeat after ten rows
_WIDE = 10
"""The ratio of the highest to the lowest error above which the axis of errors is logarithmic."""
# In pixels: how far a number is from its point, and the room that it needs.
_RADII = (10, 18, 26, 34, 44, 56, 70, 86)
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_WIDTH, _HEIGHT = 15, 11


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
    # The names of all rows fit beside the panels.
    figure = Figure(figsize=(6.5 * len(panels) + 3.0, max(5.5, 1.2 + 0.2 * len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    drawn = list(zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True))
    named: dict[str, Artist] = {}
    for axes, (label, known) in drawn:
        _draw(axes, label, known, {number: names[number] for number in known})
        handles, texts = axes.get_legend_handles_labels()
        named.update(zip(texts, handles, strict=True))
    first, last = drawn[0][0], drawn[-1][0]
    _scale_errors(first, [line.error for line in shown if line.error is not None])  # the panels share this axis
    last.legend(
        named.values(), named.keys(), loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False
    )
    figure.draw_without_rendering()  # the numbers are placed in pixels
    for axes, (_, known) in drawn:
        _number(axes, known, points_per_pixel=72 / figure.dpi)
    return figure


def plot_trade_offs(lines: Sequence[Line], path: Path, *, title: str) -> bool:
    """Writes the picture. Returns False if there was nothing to draw."""
    figure = draw_trade_offs(lines, title=title)
    if figure is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=120, format="png")
    return figure is not None


def _draw(axes: Axes, label: str, known: dict[int, Measured], names: dict[int, str]) -> None:
    for number, (cost, error, deviation) in known.items():
        marker, label_of_row = _MARKERS[number // 10 % len(_MARKERS)], f"{number} {names[number]}"
        axes.errorbar(cost, error, deviation, color=f"C{number % 10}", marker=marker, capsize=3, label=label_of_row)
    best = front([(cost, error) for cost, error, _ in known.values()])
    axes.plot(*zip(*best, strict=True), color="0.5", zorder=0, drawstyle="steps-post", label="Pareto front")
    axes.axvline(1.0, color="0.8", linestyle=":", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("test error %")


def _scale_errors(axes: Axes, errors: Sequence[float]) -> None:
    """Makes the axis of errors logarithmic if they differ much: rows that hardly learn would squeeze all others."""
    lowest, highest = min(errors), max(errors)
    if 0 < lowest * _WIDE < highest:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(lowest / 2, min(100, highest * 1.5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _number(axes: Axes, known: dict[int, Measured], *, points_per_pixel: float) -> None:
    """Writes each row's number beside its point, at the first place around it that is free.

    Its distance is in typographic points, which stays right if the picture has another resolution.
    """
    points = {number: axes.transData.transform((cost, error)) for number, (cost, error, _) in known.items()}
    taken = [tuple(point) for point in points.values()]
    for number, (x, y) in points.items():
        places = [(x + radius * right, y + radius * up) for radius in _RADII for right, up in _DIRECTIONS]
        place = next((each for each in places if not any(map(_near(each), taken))), places[0])
        taken.append(place)
        far = abs(place[0] - x) + abs(place[1] - y) > 2 * _RADII[0]
        axes.annotate(
            str(number),
            known[number][:2],
            xytext=((place[0] - x) * points_per_pixel, (place[1] - y) * points_per_pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5} if far else None,
        )


def _near(place: Point) -> Callable[[Point], bool]:
    """Whether a number at a place, in pixels, would cover something at another place."""
    return lambda other: abs(place[0] - other[0]) < _WIDTH and abs(place[1] - other[1]) < _HEIGHT
