"""The table of the times of training steps on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.speed.rows import PYTORCH
from experiments.tables import terminal_table
from kd_local.sizes import MIB

_OPTIONAL = ("of end to end", "of PyTorch", "TFLOP/s", "of peak", "predicted MiB", "measured MiB", "from cache s")


def speed_table(results: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """The table of all rows. A column without any figure is left out."""
    columns = {
        "row": [" ".join(filter(None, [one["method"], one["context"]])) for one in results],
        "K": [str(one["modules"]) for one in results],
        "form": [one["form"] if one["framework"] != PYTORCH else f"{PYTORCH} {one['form']}" for one in results],
        "dtype": [one["dtype"] for one in results],
        "ms": [_ms(one["seconds"]) for one in results],
        "least": [_ms(one["least"]) for one in results],
        "most": [_ms(one["most"]) for one in results],
        "n": [str(one["rounds"]) for one in results],
        "host ms": [_ms(one["host_seconds"]) for one in results],
        "images a second": [f"{one['images_per_second']:,.0f}" for one in results],
        "of end to end": [_number(one["of_end_to_end"], ".2f") for one in results],
        "of PyTorch": [_number(one["of_pytorch"], ".2f") for one in results],
        "TFLOP/s": [_number(one["flops"], ".3g", unit=1e12) for one in results],
        "of peak": [_number(one["of_peak"], ".1%") for one in results],
        "predicted MiB": [_number(one["predicted_bytes"], ",.1f", unit=MIB) for one in results],
        "measured MiB": [_number(one["measured_bytes"], ",.1f", unit=MIB) for one in results],
        "compile s": [_number(one["compile_seconds"], ".1f") for one in results],
        "from cache s": [_number(one["cached_seconds"], ".1f") for one in results],
    }
    columns = {heading: cells for heading, cells in columns.items() if heading not in _OPTIONAL or any(cells)}
    return terminal_table(columns, title=title, left=("row", "form", "dtype"), caption=_caption(columns))


def _caption(columns: Mapping[str, Sequence[str]]) -> str:
    parts = ["ms: the median of n rounds"]
    if "of end to end" in columns:
        parts.append("of end to end: in the same form, precision and framework")
    if "of PyTorch" in columns:
        parts.append("of PyTorch: the same step in its fastest form, in the same precision")
    return "; ".join(parts) + ". Ratios compare only rounds that ran in turn."


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else format(value / unit, form)
