"""Draws pictures of boxes and arrows: networks, what is trained, and where gradients flow.

Boxes with a solid edge are trained, boxes with a dashed edge are not. Black arrows are the forward pass, red arrows
gradients; a red bar marks where a gradient stops.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FORWARD, BACKWARD = "0.25", "C3"
COLORS = {"module": "#cfe2f3", "auxiliary": "#fff2cc", "frozen": "#eeeeee", "loss": "#f4cccc"}
WIDTH, HEIGHT = 1.5, 0.56


@dataclass(frozen=True)
class Box:
    """A box with its centre; `kind` is one of `COLORS`."""

    x: float
    y: float
    text: str
    kind: str = "auxiliary"
    width: float = WIDTH


@dataclass(frozen=True)
class Arrow:
    """An arrow between the sides of two boxes that face each other.

    Attributes:
        gradient: True if a gradient flows back along it; otherwise a bar marks where it stops, if `bar`.
    """

    start: str
    end: str
    gradient: bool = True
    text: str = ""
    bar: bool = True


@dataclass(frozen=True)
class Picture:
    boxes: dict[str, Box]
    arrows: tuple[Arrow, ...]


def draw(of: Picture) -> Figure:
    right = max(box.x + box.width / 2 for box in of.boxes.values())
    top = max(box.y for box in of.boxes.values())
    figure = Figure(figsize=(0.75 * (right + 0.5), 0.75 * (top + 1.0)))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.2, right + 0.3)
    axes.set_ylim(-0.5, top + 0.5)
    axes.set_aspect("equal")
    axes.axis("off")
    for box in of.boxes.values():
        if box.width:
            draw_box(axes, box)
    for arrow in of.arrows:
        draw_arrow(axes, of.boxes[arrow.start], of.boxes[arrow.end], arrow)
    return figure


def draw_box(axes: Axes, box: Box) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - HEIGHT / 2),
            box.width,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLORS[box.kind],
            edgecolor="0.3",
            linestyle="--" if box.kind == "frozen" else "-",
        )
    )
    axes.text(box.x, box.y, box.text, ha="center", va="center", fontsize=9)


def draw_arrow(axes: Axes, start: Box, end: Box, arrow: Arrow) -> None:
    """A grey arrow for the forward pass, and beside it a red one for the gradient, or a bar where it stops."""
    begin, finish = facing(start, end), facing(end, start)
    length = math.dist(begin, finish)
    aside = (begin[1] - finish[1]) * 0.09 / length, (finish[0] - begin[0]) * 0.09 / length
    for sign, ends, color in ((1, (begin, finish), FORWARD), (-1, (finish, begin), BACKWARD)):
        if sign < 0 and not arrow.gradient:
            continue
        (x0, y0), (x1, y1) = (
            (x + sign * aside[0] * arrow.gradient, y + sign * aside[1] * arrow.gradient) for x, y in ends
        )
        axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2})
    middle = (begin[0] + finish[0]) / 2, (begin[1] + finish[1]) / 2
    if arrow.bar and not arrow.gradient:
        axes.text(*middle, "||", ha="center", va="center", fontsize=11, color=BACKWARD, fontweight="bold")
    if arrow.text:
        axes.text(middle[0], middle[1] + 0.15, arrow.text, fontsize=8, ha="center", va="bottom")


def facing(box: Box, other: Box) -> tuple[float, float]:
    """The middle of the side of a box that faces another box."""
    if abs(other.x - box.x) - (box.width + other.width) / 2 > abs(other.y - box.y) - HEIGHT:
        return box.x + (box.width / 2 if other.x > box.x else -box.width / 2), box.y
    return box.x, box.y + (HEIGHT / 2 if other.y > box.y else -HEIGHT / 2)


def write(pictures: Mapping[str, Picture], folder: Path) -> None:
    """Writes a file for each picture by its name."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        draw(picture).savefig(folder / f"{name}.png", dpi=100)
