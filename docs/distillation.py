"""Draws the pictures of distillation.md: python docs/distillation.py

Each picture shows the teacher above and the student below.
"""

from functools import partial
from pathlib import Path

from pictures import Arrow, Box, Picture, write

TOP = 2.4
FIRST, SECOND, THIRD, LAST = 2.7, 5.6, 8.3, 10.7

Frozen = partial(Arrow, gradient=False, bar=False)
"""An arrow between boxes that are not trained: no gradient is computed there."""


def picture(boxes: dict[str, Box], *arrows: Arrow, top: float = TOP) -> Picture:
    """Teacher and student with the boxes and arrows of a family."""
    networks = {
        "image": Box(0.4, top / 2, "image", "frozen", 1.0),
        "t1": Box(FIRST, top, "teacher, stage i", "frozen", 1.9),
        "t2": Box(SECOND, top, "remaining blocks", "frozen", 2.0),
        "t": Box(THIRD, top, "logits", "frozen"),
        "s1": Box(FIRST, 0, "student, stage i", "module", 1.9),
        "s2": Box(SECOND, 0, "remaining blocks", "module", 2.0),
        "s": Box(THIRD, 0, "logits", "module"),
        "labels": Box(LAST, 0, "labels", "loss"),
    }
    lanes = (
        Frozen("image", "t1"),
        Frozen("t1", "t2"),
        Frozen("t2", "t"),
        Frozen("image", "s1"),
        Arrow("s1", "s2"),
        Arrow("s2", "s"),
        Arrow("s", "labels"),
    )
    return Picture({**networks, **boxes}, (*lanes, *arrows))


PICTURES = {
    "logits": picture(
        {"d": Box(THIRD, TOP / 2, "distance", "loss")},
        Arrow("s", "d"),
        Arrow("t", "d", gradient=False),
    ),
    "features": picture(
        {"connector": Box(FIRST, 0.95, "adapter"), "d": Box(FIRST + 2.2, TOP - 0.9, "distance", "loss")},
        Arrow("s1", "connector"),
        Arrow("connector", "d"),
        Arrow("t1", "d", gradient=False),
    ),
    "through_teacher": picture(
        {
            "connector": Box(FIRST, 1.2, "connector"),
            "blocks": Box(SECOND, 1.2, "teacher's blocks", "frozen", 2.0),
            "stone": Box(THIRD, 1.2, "logits", "frozen"),
            "d": Box(LAST, 1.2, "labels, distance", "loss", 1.9),
        },
        Arrow("s1", "connector"),
        Arrow("connector", "blocks"),
        Arrow("blocks", "stone"),
        Arrow("stone", "d"),
        Arrow("t", "d", gradient=False),
    ),
    "through_student": picture(
        {
            "connector": Box(FIRST, 1.2, "connector"),
            "blocks": Box(SECOND, 1.2, "student's blocks", "module", 2.0),
            "stone": Box(THIRD, 1.2, "logits", "module"),
            "d": Box(LAST, 1.2, "distance", "loss"),
        },
        Arrow("t1", "connector", gradient=False),
        Arrow("connector", "blocks"),
        Arrow("blocks", "stone"),
        Arrow("stone", "d"),
        Arrow("t", "d", gradient=False),
    ),
}
PICTURES["views"] = Picture(
    {
        "weak": Box(0.8, 2.75, "weak view", "frozen"),
        "strong": Box(0.8, 0.45, "strong view", "frozen"),
        "t1": Box(3.4, 3.2, "teacher", "frozen"),
        "s1": Box(3.4, 2.3, "student", "module"),
        "t2": Box(3.4, 0.9, "teacher", "frozen"),
        "s2": Box(3.4, 0, "student", "module"),
        "d1": Box(6.2, 2.75, "labels, distance", "loss", 1.9),
        "across": Box(9.1, 1.6, "distance across views", "loss", 2.6),
        "d2": Box(6.2, 0.45, "labels, distance", "loss", 1.9),
    },
    (
        Frozen("weak", "t1"),
        Frozen("weak", "s1"),
        Frozen("strong", "t2"),
        Frozen("strong", "s2"),
        Arrow("t1", "d1", gradient=False),
        Arrow("s1", "d1"),
        Arrow("t2", "d2", gradient=False),
        Arrow("s2", "d2"),
        Arrow("s1", "across"),
        Arrow("t2", "across", gradient=False),
    ),
)


if __name__ == "__main__":
    write(PICTURES, Path(__file__).parent / "distillation")
