"""Draws docs/overview.png from the tables of results.md and memory.md: python docs/overview.py"""

import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
MODULES = (2, 4, 8, 16)
CONTEXTS = ("R0", "E", "R1", "R1E")
END_TO_END = {"color": "0.3", "linestyle": "--"}


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of each row of the first table below a heading."""
    lines = (DOCS / page).read_text().split(f"{heading}\n", 1)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| ---"))
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d*\.\d+|\d+", cell.replace(",", ""))]


def draw() -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    error, memory = figure.subplots(1, 2)
    for name, *cells in rows("results.md", "### Contexts, digits, ResNet-32"):
        if name in CONTEXTS:
            means, deviations = zip(*map(numbers, cells), strict=True)
            error.errorbar(MODULES, means, deviations, label=name, marker="o", capsize=3)
        elif name.startswith("end to end"):
            error.axhline(numbers(cells[-1])[0], label="end to end", **END_TO_END)
    for method, context, *cells in rows("memory.md", "## ResNet-32 on a CPU, batch 256"):
        if method == "contsup" and context in CONTEXTS:
            memory.plot(MODULES, [numbers(cell)[0] for cell in cells], label=context, marker="o")
        elif method.startswith("end_to_end"):
            (peak, *_) = numbers(cells[0])
            memory.axhline(peak, **END_TO_END)
            memory.annotate(
                method.split(" (")[0].replace("_", " "),
                (2, peak),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize="small",
            )
    for panel, title, unit in (
        (error, "accuracy is kept (digits)", "test error, %"),
        (memory, "memory falls (CIFAR-10, batch 256)", "peak of a training step, MiB"),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xticks(MODULES, list(map(str, MODULES)))
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel("modules K")
        panel.set_ylabel(unit)
        panel.set_title(f"ResNet-32: {title}", fontsize="medium")
    error.legend(title="context", fontsize="small")
    return figure


if __name__ == "__main__":
    draw().savefig(DOCS / "overview.png", dpi=110)
