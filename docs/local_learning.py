"""Draws the pictures of local_learning.md: python docs/local_learning.py

Each picture shows two neighbouring modules and the auxiliary networks of the first.
"""

from pathlib import Path

from pictures import Arrow, Box, Picture, write

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


if __name__ == "__main__":
    write(PICTURES, Path(__file__).parent / "local_learning")
