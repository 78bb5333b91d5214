"""Rows that run at once: their shares of the machine."""

import os

import pytest

from experiments.sweep.row_process import shares


@pytest.mark.parametrize(("cores", "expected"), [({0, 1, 2, 5}, [{0, 2}, {1, 5}]), ({3}, [{3}, {3}])])
def test_rows_share_the_cores_of_this_process(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    assert [share.cores for share in shares(2)] == expected


def test_rows_share_the_memory_of_a_gpu_unless_the_environment_says_how(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert {share.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares(4)} == {"0.225"}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    assert {share.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares(4)} == {"0.1"}
