"""The picture of a timeline."""

import pytest

from experiments.timeline_plot import draw_timeline
from kd_local.parallel import Timeline
from kd_local.parallel.timeline import Span


def test_each_piece_is_a_bar_with_the_number_and_color_of_its_batch():
    spans = (
        Span(0, "module00", 0, 0.0, 1.0),
        Span(1, "module01", 0, 1.0, 2.5),
        Span(0, "module00", 1, 1.0, 2.0),
    )
    (axes,) = draw_timeline(Timeline(spans, 2.5)).axes
    bars = [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches]
    assert bars == [pytest.approx(bar) for bar in ((0, 1, 0), (1, 1.5, 1), (1, 1, 0))]
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
        ("0", (0.5, 0)),
        ("0", (1.75, 1)),
        ("1", (1.5, 0)),
    ]
    first, other, second = (bar.get_facecolor() for bar in axes.patches)
    assert first == other != second
    assert [label.get_text() for label in axes.get_yticklabels()] == ["group 0", "group 1"]
    assert axes.get_xlabel() == "seconds"
