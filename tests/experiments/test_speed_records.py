"""Each row of the speed table is timed once, and a ratio compares only rounds that ran in turn."""

import pytest

from experiments.configs import default
from experiments.speed.figures import figures, ratio, to_time
from experiments.speed.records import ROUNDS, Compilation, Records, Round
from experiments.speed.rows import SpeedRow
from experiments.speed.run import slowest

WHOLE = SpeedRow("end_to_end", None, 1, "joined", "float32")
LOCAL = SpeedRow("contsup", "R0", 4, "joined", "float32")
SCANNED = SpeedRow("contsup", "R0", 4, "scanned", "float32")
TORCH = SpeedRow("contsup", "R0", 4, "nchw", "float32", "pytorch")
LAST = SpeedRow("contsup", "R0", 4, "channels_last", "float32", "pytorch")


def rounds(start, *seconds):
    return [Round(f"{start} {number}", each, each / 10, None) for number, each in enumerate(seconds)]


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path, default.get_config(), 3)


def add(records, row, found):
    records.add_compilation(row, Compilation("NVIDIA H100", 9.0, 1.0, 2**20, 10**6))
    for one in found:
        records.add_round(row, one)


def test_records_are_found_again(records, tmp_path):
    add(records, LOCAL, rounds("a", 1.0, 2.0))
    add(records, WHOLE, rounds("a", 1.0))
    again = Records(tmp_path, default.get_config(), 3)
    assert again.rounds(LOCAL) == rounds("a", 1.0, 2.0) and again.compilation(LOCAL).compile_seconds == 9
    assert again.rounds(SCANNED) == [] and again.compilation(SCANNED) is None
    config = default.get_config()
    assert Records(tmp_path, config, 4).rounds(LOCAL) == []
    config.batch_size += 1
    assert Records(tmp_path, config, 3).rounds(LOCAL) == []
    again.forget([LOCAL])
    assert again.rounds(LOCAL) == [] and again.rounds(WHOLE) == rounds("a", 1.0)
    assert Records(tmp_path, default.get_config(), 3).rounds(WHOLE) == rounds("a", 1.0)


@pytest.mark.parametrize("name", ["XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "NVIDIA_TF32_OVERRIDE"])
def test_a_row_depends_on_settings_of_the_environment(records, tmp_path, monkeypatch, name):
    add(records, LOCAL, rounds("a", 1.0))
    monkeypatch.setenv(name, "another")
    assert Records(tmp_path, default.get_config(), 3).rounds(LOCAL) == []


def test_a_row_does_not_depend_on_where_compiled_steps_are(records, tmp_path, monkeypatch):
    add(records, LOCAL, rounds("a", 1.0))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert Records(tmp_path, default.get_config(), 3).rounds(LOCAL) == rounds("a", 1.0)


def test_executables_of_other_code_are_deleted(records, tmp_path):
    mine, other = records.cache(LOCAL), tmp_path / "compiled" / "other" / "row"
    for folder in (mine, other):
        folder.mkdir(parents=True)
    records.delete_caches_of_other_code()
    assert mine.exists() and not other.parent.exists() and records.cache(WHOLE).parent == mine.parent


def test_the_rows_to_trace_are_the_slowest(records):
    add(records, WHOLE, rounds("a", 1.0))
    add(records, LOCAL, rounds("a", 3.0))
    add(records, TORCH, rounds("a", 9.0))
    rows = [WHOLE, LOCAL, SCANNED, TORCH]
    assert slowest(rows, records, None) == [LOCAL, WHOLE] and slowest(rows, records, 1) == [LOCAL]


def test_an_incomplete_line_is_timed_again(records, tmp_path):
    add(records, LOCAL, rounds("a", 1.0, 2.0))
    text = (tmp_path / ROUNDS).read_text()
    (tmp_path / ROUNDS).write_text(text[:-20])
    assert Records(tmp_path, default.get_config(), 3).rounds(LOCAL) == rounds("a", 1.0)


def test_a_ratio_compares_rounds_that_ran_in_turn():
    """The second start was on a busier machine."""
    assert ratio(rounds("b", 30.0, 33.0), rounds("a", 10.0, 10.0) + rounds("b", 20.0, 22.0)) == 1.5
    assert ratio(rounds("b", 30.0), rounds("a", 10.0)) is None


def test_what_is_missing_is_timed_with_what_it_is_compared_with(records):
    assert to_time([WHOLE, LOCAL], records, 2) == {WHOLE: 2, LOCAL: 2}
    add(records, WHOLE, rounds("a", 1.0, 1.0))
    add(records, LOCAL, rounds("a", 1.0))
    rows = [WHOLE, LOCAL, SCANNED]
    assert to_time(rows, records, 2) == {WHOLE: 1, LOCAL: 1, SCANNED: 2}
    add(records, LOCAL, rounds("b", 1.0))
    assert to_time(rows, records, 2) == {SCANNED: 2}
    assert to_time([WHOLE, LOCAL], records, 2) == {}
    assert to_time([LOCAL, TORCH, LAST], records, 2) == {TORCH: 2, LAST: 2}
    assert to_time([TORCH, SCANNED], records, 2) == {TORCH: 2, SCANNED: 2}


def test_figures(records):
    add(records, WHOLE, rounds("a", 0.5, 0.5, 0.5))
    add(records, LOCAL, rounds("a", 1.0, 3.0, 2.0))
    add(records, TORCH, rounds("a", 9.0, 9.0, 9.0))
    add(records, LAST, rounds("a", 4.0, 4.0, 4.0))
    found = figures(LOCAL, [WHOLE, LOCAL, SCANNED, TORCH, LAST], records, batch=8)
    assert (found["seconds"], found["least"], found["most"], found["rounds"]) == (2, 1, 3, 3)
    assert found["host_seconds"] == pytest.approx(0.2) and found["images_per_second"] == 4
    assert found["of_end_to_end"] == 4 and found["of_pytorch"] == 0.5
    assert found["flops"] == 1e6 and found["of_peak"] == pytest.approx(1e6 / 494.7e12)
    assert figures(WHOLE, [WHOLE, LOCAL], records, batch=8)["of_end_to_end"] == 1
