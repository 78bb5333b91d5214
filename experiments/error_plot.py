"""Test errors of a sweep as a picture: over the number of modules K, or as bars where all have the same K."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.published import END_TO_END, Errors, published_errors
from experiments.results import error_percent
from experiments.rows import Run

PICTURE = "error_over_modules.png"
_MARKERS = "osD^v<>Ph*"
_PUBLISHED_COLORS = {
    END_TO_END: "0.4",
    "greedy SL": "rosybrown",
    "DGL": "goldenrod",
    "InfoPro softmax": "steelblue",
    "InfoPro contrast": "mediumpurple",
}


@dataclass(frozen=True)
class Point:
    """A row's mean error over seeds and its sample deviation (0 of a single seed), in percent.

    Attributes:
        options: those in which the panel's rows differ, but for K.
    """

    options: tuple[str, ...]
    modules: int
    error: float
    deviation: float


def draw_errors(summaries: Mapping[Run, Mapping[str, Any] | None], *, title: str) -> Figure | None:
    """A panel for each network and data set, with published errors dashed where there are any; None of no run."""
    panels: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for run, summary in summaries.items():
        if summary is not None:
            rows = panels.setdefault((summary["network"], summary["dataset"]), {})
            rows.setdefault(run.row, []).append(summary)
    if not panels:
        return None
    figure = Figure(figsize=(8.0 * len(panels), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (key, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.set_title(" on ".join(key), fontsize="medium")
        points = _points(rows)
        local = [point for point in points if point.modules > 1]
        draw = _draw_curves if len({point.modules for point in local}) > 1 else _draw_bars
        draw(axes, local, [point for point in points if point.modules == 1], published_errors(*key), title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    return figure


def plot_errors(summaries: Mapping[Run, Mapping[str, Any] | None], path: Path, *, title: str) -> bool:
    """Write the picture; whether there was anything to draw."""
    figure = draw_errors(summaries, title=title)
    if figure is not None:
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(path)
    return figure is not None


def _points(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Point]:
    options = {
        row: [item for item in row.split(",") if not item.startswith("k=")]
        for row, done in rows.items()
        if done[0]["modules"] > 1
    }
    shared = set.intersection(*map(set, options.values())) if len(options) > 1 else set()
    points = []
    for row, done in rows.items():
        errors = [error_percent(summary) for summary in done]
        kept = tuple(item for item in options.get(row, ()) if item not in shared)
        points.append(Point(kept, done[0]["modules"], mean(errors), stdev(errors) if len(errors) > 1 else 0.0))
    return points


def _draw_curves(axes: Axes, local: Sequence[Point], whole: Sequence[Point], published: Errors, name: str) -> None:
    curves: dict[tuple[str, ...], list[Point]] = {}
    for point in local:
        curves.setdefault(point.options, []).append(point)
    colors = _numbered(options[:1] for options in curves)
    markers = _numbered(options[1:] for options in curves)
    for options, points in curves.items():
        points.sort(key=lambda point: point.modules)
        axes.errorbar(
            [point.modules for point in points],
            [point.error for point in points],
            [point.deviation for point in points],
            label=_label(options) or name,
            color=f"C{colors[options[:1]]}",
            marker=_MARKERS[markers[options[1:]] % len(_MARKERS)],
            fillstyle="none" if markers[options[1:]] else "full",
            capsize=3,
        )
    for point in whole:
        axes.axhline(point.error, color="black", label=END_TO_END)
        axes.axhspan(point.error - point.deviation, point.error + point.deviation, color="black", alpha=0.1)
    counts = sorted({point.modules for point in local})
    for method, errors in published.items():
        style = _published_style(method)
        if 1 in errors:
            axes.axhline(errors[1], **style)
        else:
            axes.plot(list(errors), list(errors.values()), marker="x", **style)
            counts = sorted({*counts, *errors})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("modules K")
    axes.set_ylabel("test error %")


def _draw_bars(axes: Axes, local: Sequence[Point], whole: Sequence[Point], published: Errors, name: str) -> None:
    points = [*whole, *local]
    labels = [END_TO_END] * len(whole) + [_label(point.options) or name for point in local]
    axes.barh(
        range(len(points)),
        [point.error for point in points],
        xerr=[point.deviation for point in points],
        color=["0.4"] * len(whole) + ["C0"] * len(local),
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
    axes.set_yticks(range(len(points)), labels)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    for method, errors in published.items():
        at = errors.get(1 if method == END_TO_END else local[0].modules if local else 0)
        if at is not None:
            axes.axvline(at, **_published_style(method))
    of = f", K={local[0].modules}" if local else ""
    axes.set_xlabel(f"test error %{of}")


def _published_style(method: str) -> dict[str, Any]:
    return {
        "color": _PUBLISHED_COLORS.get(method, "0.6"),
        "linestyle": "--",
        "label": f"{method}, published",
        "zorder": 1,
    }


def _numbered(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    return {key: number for number, key in enumerate(dict.fromkeys(keys))}


def _label(options: Sequence[str]) -> str:
    words = [item.removeprefix("context=").removeprefix("loss=") for item in options]
    return " ".join("decoder" if word == "decoder=true" else word for word in words)
