"""Plots the test errors of a sweep: over the number of modules K, or as bars if no two rows differ in K."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.published.distillation import TEACHER, chosen, published_results
from experiments.published.local import END_TO_END, WHOLE_NETWORK, Errors, published_errors
from experiments.sweep.records import error_percent
from experiments.sweep.rows import Run
from kd_local.files import replacing

PICTURE = "error_over_modules.png"
WHOLE = "end_to_end"
"""The method that is drawn as a reference line."""
_SHOWN_ELSEWHERE = ("k=", "method=")
"""Options that are an axis or the method's name."""
_MARKERS = "osD^v<>Ph*"
_PUBLISHED_COLORS = {
    END_TO_END: "0.4",
    TEACHER: "0.7",
    "greedy SL": "rosybrown",
    "DGL": "goldenrod",
    "InfoPro softmax": "steelblue",
    "InfoPro contrast": "mediumpurple",
}


@dataclass(frozen=True)
class Point:
    """A row's mean error over seeds and its sample standard deviation (0 for a single seed), in percent.

    Attributes:
        method: the method's name in its config.
        options: the options in which the panel's rows differ, without method and K.
        modules: K; None if the network is not cut.
    """

    method: str
    options: tuple[str, ...]
    modules: int | None
    error: float
    deviation: float


def draw_errors(summaries: Mapping[Run, Mapping[str, Any] | None], *, title: str) -> Figure | None:
    """A panel for each network and data set, and for each teacher of several; None if there are no runs.

    Published errors are dashed lines: of local learning for a network, of distillation for a student and a teacher.
    """
    panels = _panels(summaries)
    if not panels:
        return None
    figure = Figure(figsize=(8.0 * len(panels), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    for axes, (panel, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.set_title(str(panel), fontsize="medium", parse_math=False)
        points = _points(rows, hidden=(*_SHOWN_ELSEWHERE, *(["pair="] if panel.teacher else [])))
        draw = _draw_curves if len(_counts(points)) > 1 else _draw_bars
        draw(axes, points, panel.published({point.method for point in points}), title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    return figure


@dataclass(frozen=True)
class _Panel:
    """What the rows of a panel have in common; the teacher is empty if no row has one."""

    network: str
    data: str
    teacher: str = ""

    def __str__(self) -> str:
        return f"{self.network} on {self.data}" + (f", teacher {self.teacher}" if self.teacher else "")

    def published(self, methods: Collection[str]) -> Errors:
        """Published errors: of distillation those that `chosen` chooses for these methods, of local learning all."""
        results = published_results(self.data, student=self.network, teacher=self.teacher)
        found = {result.label: {WHOLE_NETWORK: round(100 - result.accuracy, 2)} for result in chosen(results, methods)}
        return found or published_errors(self.network, self.data)


def _panels(summaries: Mapping[Run, Mapping[str, Any] | None]) -> dict[_Panel, dict[str, list[Mapping[str, Any]]]]:
    """The summaries of each row in each panel. Rows without a teacher are in the panels of all teachers."""
    done = [(run.row, summary) for run, summary in summaries.items() if summary is not None]
    teachers: dict[tuple[str, str], dict[str, None]] = {}
    for _, summary in done:
        teachers.setdefault((summary["network"], summary["dataset"]), {}).update(dict.fromkeys(_teacher(summary)))
    panels: dict[_Panel, dict[str, list[Mapping[str, Any]]]] = {}
    for row, summary in done:
        key = summary["network"], summary["dataset"]
        for teacher in _teacher(summary) or list(teachers[key]) or [""]:
            panels.setdefault(_Panel(*key, teacher), {}).setdefault(row, []).append(summary)
    return panels


def _teacher(summary: Mapping[str, Any]) -> list[str]:
    """The teacher of a row; none in the summaries of earlier versions."""
    return ["+".join(summary["teachers"])] if summary.get("teachers") else []


def plot_errors(summaries: Mapping[Run, Mapping[str, Any] | None], path: Path, *, title: str) -> bool:
    """Writes the picture. Returns False if there was nothing to draw."""
    figure = draw_errors(summaries, title=title)
    if figure is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=120, format="png")
    return figure is not None


def _points(rows: Mapping[str, Sequence[Mapping[str, Any]]], *, hidden: tuple[str, ...]) -> list[Point]:
    """The points of a panel, end to end first, without the options that begin with a text of `hidden`."""
    options = {
        row: [item for item in row.split(",") if not item.startswith(hidden)]
        for row, done in rows.items()
        if done[0]["method"] != WHOLE
    }
    shared = set.intersection(*map(set, options.values())) if len(options) > 1 else set()
    points = []
    for row, done in rows.items():
        errors = [error_percent(summary) for summary in done]
        modules = done[0]["modules"] or 1  # 1 in folders of earlier versions, for every method but ContSup
        points.append(
            Point(
                done[0]["method"],
                tuple(item for item in options.get(row, ()) if item not in shared),
                modules if modules > 1 else None,
                mean(errors),
                stdev(errors) if len(errors) > 1 else 0.0,
            )
        )
    return sorted(points, key=lambda point: point.method != WHOLE)


def _counts(points: Sequence[Point]) -> list[int]:
    return sorted({point.modules for point in points if point.modules is not None})


def _labels(points: Sequence[Point], name: str) -> list[str]:
    """The labels of a panel's points: the options and, unless all points are ContSup, the method."""
    methods = {point.method for point in points} - {WHOLE}
    labels = []
    for point in points:
        words = [point.method] if methods != {"contsup"} else []
        words += [item.removeprefix("context=").removeprefix("loss=") for item in point.options]
        label = " ".join("decoder" if word == "decoder=true" else word for word in words)
        labels.append(END_TO_END if point.method == WHOLE else label or name)
    return labels


def _draw_curves(axes: Axes, points: Sequence[Point], published: Errors, name: str) -> None:
    curves: dict[str, dict[int, Point]] = {}
    for label, point in zip(_labels(points, name), points, strict=True):
        if point.modules is None:
            axes.axhline(point.error, color="black" if point.method == WHOLE else None, label=label)
            axes.axhspan(point.error - point.deviation, point.error + point.deviation, color="black", alpha=0.1)
        else:
            curves.setdefault(label, {})[point.modules] = point
    options = {label: next(iter(curve.values())).options for label, curve in curves.items()}
    colors = _numbered(each[:1] for each in options.values())
    markers = _numbered(each[1:] for each in options.values())
    for label, curve in curves.items():
        color, marker = colors[options[label][:1]], markers[options[label][1:]]
        counts = sorted(curve)
        axes.errorbar(
            counts,
            [curve[count].error for count in counts],
            [curve[count].deviation for count in counts],
            label=label,
            color=f"C{color}",
            marker=_MARKERS[marker % len(_MARKERS)],
            fillstyle="none" if marker else "full",
            capsize=3,
        )
    counts = _counts(points)
    for number, (method, errors) in enumerate(published.items()):
        style = _published_style(method, number)
        if WHOLE_NETWORK in errors:
            axes.axhline(errors[WHOLE_NETWORK], **style)
        else:
            axes.plot(list(errors), list(errors.values()), marker="x", **style)
            counts = sorted({*counts, *errors})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("modules K")
    axes.set_ylabel("test error %")


def _draw_bars(axes: Axes, points: Sequence[Point], published: Errors, name: str) -> None:
    axes.barh(
        range(len(points)),
        [point.error for point in points],
        xerr=[point.deviation for point in points],
        color=["0.4" if point.method == WHOLE else "C0" for point in points],
        height=0.6,
        capsize=3,
    )
    for i, point in enumerate(points):
        axes.annotate(
            f"{point.error:.2f}",
            (point.error + point.deviation, i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )
    axes.set_yticks(range(len(points)), _labels(points, name))
    axes.margins(x=0.12)
    axes.invert_yaxis()
    cut = [point for point in points if point.method != WHOLE]
    count = cut[0].modules if len({point.modules for point in cut}) == 1 else None
    for number, (method, errors) in enumerate(published.items()):
        at = errors.get(WHOLE_NETWORK if method == END_TO_END else count or WHOLE_NETWORK)
        if at is not None:
            axes.axvline(at, **_published_style(method, number))
    axes.set_xlabel("test error %" if count is None else f"test error %, K={count}")


def _published_style(method: str, number: int) -> dict[str, Any]:
    return {
        "color": _PUBLISHED_COLORS.get(method, f"C{number % 9 + 1}"),
        "linestyle": "--",
        "label": f"{method}, published",
        "zorder": 1,
    }


def _numbered(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    return {key: number for number, key in enumerate(dict.fromkeys(keys))}
