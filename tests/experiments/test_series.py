"""A sweep of runs that a function in place of the training program finishes."""

import json
from collections import Counter
from pathlib import Path

import pytest

from experiments.ending import Ending
from experiments.sweep import results, series
from experiments.sweep.records import read_records
from experiments.sweep.rows import Run, read_rows
from tests.support.finished_run import finished_run

TABLE = Path(__file__).parents[2] / "experiments" / "configs" / "contsup" / "table1.py"


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_folder_of_a_run_is_read_when_the_run_ends_and_not_after_every_run(tmp_path, monkeypatch, capsys, jobs):
    rows = read_rows(str(TABLE), [], {})
    runs = [Run("k=1", seed) for seed in range(6)]
    reads = Counter()
    belongs = results.workdirs.belongs

    def read(folder, *arguments):
        reads[folder.name] += (folder / "summary.json").exists()
        return belongs(folder, *arguments)

    def train(command, **_):
        folder = Path(command[-1].removeprefix("--workdir="))
        (run,) = (run for run in runs if run.folder(tmp_path) == folder)
        finished_run(rows, run, tmp_path, error=5.0 + run.seed, epochs=160)
        (folder / "starts.jsonl").write_text(json.dumps({"commit": "a"}) + "\n")

    monkeypatch.setattr(results.workdirs, "belongs", read)
    monkeypatch.setattr(series, "execute", train)
    series.run_series(rows, runs, tmp_path, command="sweep", jobs=jobs, timed=False, ending=Ending())
    assert "7.50 ± 1.87" in capsys.readouterr().out
    assert [record.test_error for record in read_records(tmp_path).values()] == pytest.approx([5, 6, 7, 8, 9, 10])
    assert set(reads.values()) == {1} and len(reads) == len(runs)
