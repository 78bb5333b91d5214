"""Timelines from made-up observations: an end may be noticed late, and in any order."""

import random
from itertools import pairwise

import pytest

from kd_local.parallel.timeline import Span, Timeline, working


def test_pieces_of_one_group_work_one_after_another():
    observed = [Span(0, "a", 0, 0.0, 1.0), Span(0, "b", 0, 0.1, 3.0), Span(0, "a", 1, 0.2, 4.5)]
    assert [(span.start, span.end) for span in working(observed)] == [(0.0, 1.0), (1.0, 3.0), (3.0, 4.5)]


def test_a_piece_that_is_done_when_its_dispatch_returns():
    """As on a CPU: the second piece was dispatched after the end of the first, and the device had nothing to do."""
    observed = [Span(0, "a", 0, 0.0, 1.0), Span(0, "b", 0, 1.5, 2.0)]
    assert [(span.start, span.end) for span in working(observed)] == [(0.0, 1.0), (1.5, 2.0)]


def test_an_end_that_is_noticed_after_that_of_the_next_group():
    observed = [Span(0, "a", 0, 0.0, 2.5), Span(1, "b", 0, 0.1, 2.0), Span(0, "a", 1, 0.2, 3.0)]
    assert [(span.start, span.end) for span in working(observed)] == [(0.0, 2.0), (2.0, 2.0), (2.0, 3.0)]


def test_no_time_is_negative():
    numbers = random.Random(0)
    for _ in range(200):
        observed = [
            Span(group, f"piece{group}", batch, numbers.random(), numbers.random())
            for batch in range(5)
            for group in range(3)
        ]
        spans = working(observed)
        assert all(0 <= span.start <= span.end for span in spans)
        for key in ("batch", "group"):
            for value in range(3):
                of_one = [span for span in spans if getattr(span, key) == value]
                assert all(before.end <= after.end for before, after in pairwise(of_one))


def test_the_time_of_a_piece_is_the_median():
    spans = (Span(0, "a", 0, 0.0, 0.0), Span(0, "a", 1, 1.0, 3.0), Span(0, "a", 2, 3.0, 6.0), Span(1, "b", 0, 0.0, 4.0))
    assert Timeline(spans, 6.0).seconds_of_pieces() == {"a": pytest.approx(2.0), "b": pytest.approx(4.0)}
