"""Draws the pictures of local_learning.md: python docs/local_learning.py

Each picture shows two neighbouring modules and the auxiliary networks of the first. Boxes with a solid edge are
trained, boxes with a dashed edge are not.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent / "local_learning"
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
    """An arrow between the sides of two boxes that face each other. Gradients flow back along it if `gradient`."""

    start: str
    end: str
    gradient: bool = True
    text: str = ""


@dataclass(frozen=True)
class Picture:
    boxes: dict[str, Box]
    arrows: tuple[Arrow, ...]


MODULES = {
    "before": Box(0.0, 0, "", "module", 0.0),
    "module": Box(1.7, 0, "module i", "module"),
    "next": Box(7.4, 0, "module i+1", "module"),
}
THROUGH = (Arrow("before", "module", gradient=False), Arrow("module", "next", gradient=False))


def picture(boxes: dict[str, Box], *arrows: Arrow) -> Picture:
    return Picture({**MODULES, **boxes}, (*THROUGH, *arrows))


PICTURES = {
    "head": picture(
        {"head": Box(1.7, 1.3, "head"), "loss": Box(4.1, 1.3, "labels", "loss")},
        Arrow("module", "head"),
        Arrow("head", "loss"),
    ),
    "infopro": picture(
        {
            "head": Box(2.7, 1.3, "head"),
            "decoder": Box(0.7, 1.3, "decoder"),
            "labels": Box(2.7, 2.3, "labels", "loss"),
            "image": Box(0.7, 2.3, "image", "loss"),
        },
        Arrow("module", "head"),
        Arrow("head", "labels"),
        Arrow("module", "decoder"),
        Arrow("decoder", "image"),
    ),
    "contsup": picture(
        {
            "head": Box(1.7, 1.3, "head"),
            "loss": Box(4.1, 1.3, "labels", "loss"),
            "context": Box(5.6, 2.3, "context network"),
            "image": Box(3.2, 2.3, "image", "frozen"),
        },
        Arrow("module", "head"),
        Arrow("head", "loss"),
        Arrow("image", "context", gradient=False),
        Arrow("context", "next"),
    ),
    "auglocal": picture(
        {
            "first": Box(1.7, 1.3, "block k"),
            "second": Box(3.7, 1.3, "block L"),
            "classifier": Box(5.7, 1.3, "classifier"),
            "loss": Box(7.7, 1.3, "labels", "loss"),
        },
        Arrow("module", "first"),
        Arrow("first", "second"),
        Arrow("second", "classifier"),
        Arrow("classifier", "loss"),
    ),
    "momentum": picture(
        {
            "twin": Box(0.7, 1.3, "twin of block"),
            "average": Box(3.0, 1.3, "moving average", "frozen", 1.9),
            "sum": Box(1.7, 2.3, "s · + (2-s) ·", width=1.6),
            "head": Box(4.1, 2.3, "head"),
            "loss": Box(6.2, 2.3, "labels", "loss"),
        },
        Arrow("module", "twin"),
        Arrow("module", "average"),
        Arrow("twin", "sum"),
        Arrow("average", "sum"),
        Arrow("sum", "head"),
        Arrow("head", "loss"),
        Arrow("next", "average", gradient=False, text="parameters"),
    ),
    "hpff": picture(
        {
            "copy": Box(7.4, 1.3, "module i+1", "module"),
            "again": Box(1.7, 1.3, "module i", "module"),
            "x": Box(9.6, 0, "labels · 0.001", "loss", 1.7),
            "y": Box(9.6, 1.3, "head, decoders", width=1.7),
            "loss": Box(9.6, 2.3, "0.999 · labels, image", "loss", 2.2),
        },
        Arrow("again", "copy", text="pair: gradient flows"),
        Arrow("next", "x"),
        Arrow("copy", "y"),
        Arrow("y", "loss"),
    ),
    "mlaan": picture(
        {
            "copy": Box(6.2, 1.3, "module i+1", "module"),
            "again": Box(1.7, 1.3, "module i", "module"),
            "x": Box(9.6, 0, "labels · 0.001", "loss", 1.7),
            "leap": Box(8.5, 1.3, "later blocks"),
            "loss": Box(10.7, 1.3, "0.999 · labels", "loss", 1.7),
        },
        Arrow("again", "copy", text="pair: gradient flows"),
        Arrow("next", "x"),
        Arrow("copy", "leap"),
        Arrow("leap", "loss"),
    ),
    "teacher": picture(
        {
            "connector": Box(1.7, 1.3, "connector"),
            "teacher": Box(4.0, 1.3, "teacher's blocks", "frozen", 1.9),
            "loss": Box(6.6, 1.3, "labels, teacher's logits", "loss", 2.5),
        },
        Arrow("module", "connector"),
        Arrow("connector", "teacher"),
        Arrow("teacher", "loss"),
    ),
}


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
    if not arrow.gradient:
        axes.text(*middle, "||", ha="center", va="center", fontsize=11, color=BACKWARD, fontweight="bold")
    if arrow.text:
        axes.text(middle[0], middle[1] + 0.15, arrow.text, fontsize=8, ha="center", va="bottom")


def facing(box: Box, other: Box) -> tuple[float, float]:
    """The middle of the side of a box that faces another box."""
    if abs(other.x - box.x) - (box.width + other.width) / 2 > abs(other.y - box.y) - HEIGHT:
        return box.x + (box.width / 2 if other.x > box.x else -box.width / 2), box.y
    return box.x, box.y + (HEIGHT / 2 if other.y > box.y else -HEIGHT / 2)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, one in PICTURES.items():
        draw(one).savefig(FOLDER / f"{name}.png", dpi=100)
