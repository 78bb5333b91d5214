"""Plots the timeline of several steps."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kd_local.parallel import Timeline


def draw_timeline(timeline: Timeline) -> Figure:
    """A line for each group of devices, with a bar for the work of each piece, numbered and coloured by its batch."""
    groups = sorted({span.group for span in timeline.spans})
    figure = Figure(figsize=(10, 1.2 + 0.5 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for span in timeline.spans:
        color = f"C{span.batch % 10}"
        axes.barh(span.group, span.end - span.start, left=span.start, height=0.8, color=color, edgecolor="white")
        axes.text((span.start + span.end) / 2, span.group, str(span.batch), ha="center", va="center", fontsize=6)
    axes.set_yticks(groups, [f"group {group}" for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title("work of each group of devices (number and color: the batch)")
    return figure
