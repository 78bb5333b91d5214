"""Two processes of one run with different configs or different files: both end at once."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import devices, finish_all, free_port, start

SHORT = ("--config.epochs=2", "--config.optimizer.warmup_epochs=0", "--config.method=end_to_end")
BOTH = ("--config.mesh.data=2", "--distributed", "--processes=2")


def ended(*own: Sequence[str], workdir: Path) -> tuple[list[int], list[str], float]:
    """Statuses, errors and the seconds of two processes with arguments of each."""
    began, port = time.monotonic(), free_port()
    shared = [*SHORT, *BOTH, f"--coordinator=localhost:{port}", f"--workdir={workdir}"]
    processes = [
        start("train", *shared, *arguments, f"--index={index}", XLA_FLAGS=devices(1))
        for index, arguments in enumerate(own)
    ]
    ends = finish_all(processes, 120)
    return [status for status, _, _ in ends], [err for _, _, err in ends], time.monotonic() - began


def test_different_learning_rates_are_refused_by_both_processes(tmp_path: Path) -> None:
    rates = [[f"--config.optimizer.learning_rate={rate}"] for rate in (0.1, 0.2)]
    statuses, errors, seconds = ended(*rates, workdir=tmp_path / "run")
    assert statuses == [2, 2], errors
    for error in errors:
        assert "optimizer.learning_rate: 0.1 in process 0, 0.2 in process 1" in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
    assert seconds < 60


@pytest.mark.exhaustive
def test_different_images_and_missing_folders_are_refused_by_both_processes(
    prepare: Any, examples: Any, tmp_path: Path
) -> None:
    options = []
    for name, count in (("a", 80), ("b", 81)):
        prepare("cifar10", train=examples(count, (32, 32, 3), 10), test=examples(20, (32, 32, 3), 10))
        (tmp_path / name).mkdir()
        (tmp_path / "cifar10").rename(tmp_path / name / "cifar10")
        options.append(("--config.data.name=cifar10", f"--config.data.data_dir={tmp_path / name}"))
    statuses, errors, _ = ended(*options, workdir=tmp_path / "run")
    assert statuses == [2, 2], errors
    assert all("images.train: 80 in process 0, 81 in process 1" in error for error in errors), errors
    nowhere = ("--config.data.name=cifar10", "--config.data.data_dir=/nowhere")
    for own in ([nowhere, options[0]], [options[0], nowhere]):
        statuses, errors, _ = ended(*own, workdir=tmp_path / "run")
        assert statuses == [2, 2], errors
        assert all("no prepared cifar10 in /nowhere/cifar10" in error for error in errors), errors
