"""A run whose files lack the record of its state evaluates the state again."""

from dataclasses import replace
from pathlib import Path

import optax
import pytest

from kd_local.local import EndToEnd
from kd_local.training import Checkpoints, train
from kd_local.training.logging import METRICS, Log, read_epochs
from kd_local.training.records import EpochRecord
from tests.support import tiny

METHOD = EndToEnd(tiny.network(), optax.sgd(0.05))


def start(workdir: Path, reports: list[str], *, epochs: int) -> list[EpochRecord]:
    """Run as the training program does; the records of this start."""
    log = Log(workdir, report=reports.append)
    with Checkpoints(workdir / "checkpoints", records=(log.epochs, log.steps)) as checkpoints:
        recorded = [record.step for record in read_epochs(workdir)]
        result = train(
            METHOD,
            tiny.data(20, 8),
            epochs=epochs,
            batch_size=10,
            schedule=optax.constant_schedule(0.05),
            checkpoints=checkpoints,
            observers=(log,),
            recorded=recorded,
        )
    log.close()
    return result.records


@pytest.mark.long
def test_a_finished_run_whose_records_are_lost_or_damaged_has_the_right_last_record(tmp_path: Path) -> None:
    reports: list[str] = []
    whole = start(tmp_path, reports, epochs=2)
    assert [record.step for record in whole] == [2, 4]
    path = tmp_path / METRICS
    lines = path.read_text().splitlines(keepends=True)
    assert start(tmp_path, reports, epochs=2) == [] and not reports and path.read_text() == "".join(lines)

    last = replace(whole[1], train={}, seconds=0.0, images_per_second=0.0, data_wait_seconds=0.0)
    path.write_text(lines[0] + lines[1][:-40])
    assert start(tmp_path, reports, epochs=2) == [last] and read_epochs(tmp_path) == [whole[0], last]
    assert reports == [f"line 2 of {path} is damaged (no JSON) and is skipped"]

    # A run that continues from there has the records of both.
    path.unlink()
    reports.clear()
    assert [record.step for record in start(tmp_path, reports, epochs=3)] == [4, 6]
    left_out = "which cannot be made again: curves, times and tables leave out what is missing"
    assert reports == [f"{path} has no record of epoch 1, {left_out}"]
