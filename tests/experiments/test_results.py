"""The table and the picture of a sweep, made from the folders of its runs."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from experiments.published.local import published_errors
from experiments.sweep.document import read_lines
from experiments.sweep.error_plot import draw_errors, plot_errors
from experiments.sweep.records import read_records, write_records
from experiments.sweep.results import check, collect, finished
from experiments.sweep.rows import Rows, Run, read_rows
from experiments.sweep.step_time import StepTime
from experiments.sweep.table import Line, tabulate, write_tables
from experiments.sweep.trade_offs import draw_trade_offs, front
from experiments.sweep.verification import differences
from tests.support.finished_run import finished_run

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


def rows_of(name: str, **overrides) -> Rows:
    return read_rows(str(CONFIGS / f"{name}.py"), [], overrides)


def test_a_run_is_done_if_it_has_this_config_and_all_its_steps(tmp_path):
    rows, run = rows_of("contsup/table1"), Run("k=1", 0)
    folder = finished_run(rows, run, tmp_path, error=8)
    assert finished(folder, rows.config(run)) is not None
    assert finished(folder, rows.config(Run("k=1", 1))) is None
    assert finished(folder, rows_of("contsup/table1", epochs=3).config(run)) is None
    assert finished(folder, rows_of("contsup/table1", **{"data.data_dir": "/elsewhere"}).config(run)) is not None
    short = finished_run(rows, Run("k=1", 1), tmp_path, error=8, epochs=0.14)
    assert finished(short, rows.config(Run("k=1", 1))) is None
    assert finished(short, rows_of("contsup/table1", steps=7).config(Run("k=1", 1))) is not None
    (short / "summary.json").unlink()
    assert finished(short, rows.config(Run("k=1", 1))) is None


def test_the_table_has_means_over_seeds_including_earlier_sweeps(tmp_path):
    rows = rows_of("contsup/table2")
    row, other, missing = rows.names[1:4]
    for seed, error in ((0, 8.0), (1, 9.0), (2, 10.0)):
        finished_run(
            rows,
            Run(row, seed),
            tmp_path,
            error=error,
            training_multiply_adds=15000,
            peak_of_end_to_end=0.21,
            images=700,
        )
    finished_run(rows, Run(other, 5), tmp_path, error=20.0)
    runs = [Run(row, 0), Run(row, 1), Run(row, 3), Run(missing, 0)]
    lines = tabulate(rows, collect(rows, runs, tmp_path), failed=[Run(missing, 0)])
    assert [(line.number, line.row, line.state, line.seeds) for line in lines] == [
        (2, row, "3 of 4 seeds", 3),
        (3, other, "done", 1),
        (4, missing, "failed", 0),
    ]
    assert (lines[0].error, lines[0].deviation) == pytest.approx((9.0, 1.0))
    assert (lines[0].train_seconds, lines[0].images_per_second) == pytest.approx((11.0, 100.0))
    assert lines[1].error == pytest.approx(20.0)
    assert lines[1].deviation is None
    assert lines[2].error is None
    assert (lines[0].training_multiply_adds, lines[0].peak_of_end_to_end) == (15000 * 700, 0.21)
    assert lines[1].training_multiply_adds is None


def test_the_table_is_written_as_csv_markdown_and_latex(tmp_path):
    rows = rows_of("contsup/table2")
    row = rows.names[1]
    for seed, error in ((0, 8.0), (1, 10.0)):
        finished_run(
            rows, Run(row, seed), tmp_path, error=error, training_multiply_adds=20_000_000, images=100_000,
            peak_bytes=2**20, peak_of_end_to_end=0.5,
        )  # fmt: skip
    times = {row: StepTime(0.02, 0.01, 0.03, 1.5, 0.25, 1000, 5, "cpu", "0.10")}
    lines = tabulate(rows, collect(rows, [Run(row, 0)], tmp_path), times=times)
    write_tables(lines, tmp_path, title="table2", command="python -m sweep --config=a_b")
    cells = ["9.00 ± 1.41", "1.0", "0.250", "20.0", "1.50", "2", "0.01", "1,000"]
    assert f"| 2 | {row} | done | 2 | {' | '.join(cells)} |" in (tmp_path / "table.md").read_text()
    text = (tmp_path / "table.tex").read_text()
    assert text.startswith("% python -m sweep --config=a_b\n\\begin{tabular}{lrrrrrrrrr}\n")
    assert f"{row} & 2 & " + " & ".join([r"9.00 $\pm$ 1.41", *cells[1:]]) + r" \\" in text
    assert read_lines(tmp_path / "table.csv") == list(lines)
    with pytest.raises(ValueError, match="is not the table.csv of a sweep"):
        read_lines(tmp_path / "table.tex")
    names, values = ((tmp_path / "table.csv").read_text().splitlines()[i].split(",") for i in (0, 1))
    assert names[-1] == "images_per_second" and values[-1] == "100.0"


def test_a_verification_names_what_differs(tmp_path):
    rows, run = rows_of("contsup/table2"), Run("k=1", 0)

    def train(workdir: Path, *, loss: float, commit: str) -> None:
        folder = finished_run(rows, run, workdir, error=8.0, epochs=160)
        scores = {"test/loss": 1.0, "test/accuracy": 0.92}
        record = {"epoch": 160.0, "step": 7, "train/network/loss": loss, **scores, "images_per_second": 1.0}
        record |= {"seconds": loss, "data_wait_seconds": 0.0}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        start = {"versions": {}, "device": "cpu", "commit": commit, "changed": False}
        (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")

    assert list(differences(rows, run, tmp_path)) == [f"not done in {run.folder(tmp_path)}"]
    train(tmp_path, loss=0.5, commit="a")
    train(tmp_path / "verification", loss=0.25, commit="b")
    assert list(differences(rows, run, tmp_path)) == [
        "test error 8.00 %, again 8.00 %",
        "epoch 160.0: train/network/loss 0.5, again 0.25",
        "commit a, now b",
    ]
    again = tmp_path / "same"
    train(again, loss=0.5, commit="b")
    train(again / "verification", loss=0.5, commit="a")
    assert list(differences(rows, run, again)) == []


def test_a_record_stands_for_a_run_whose_folder_was_removed(tmp_path):
    rows = rows_of("contsup/table2")
    kept, other = rows.names[:2]
    for seed in (0, 1):
        folder = finished_run(rows, Run(kept, seed), tmp_path, error=8.0 + seed, epochs=160, test_loss=0.5)
        (folder / "starts.jsonl").write_text(json.dumps({"commit": "a"}) + "\n")
    finished_run(rows, Run(other, 0), tmp_path, error=20.0)
    before = collect(rows, [Run(kept, 0)], tmp_path)
    write_records(rows, before, tmp_path)
    for folder in tmp_path.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)

    assert collect(rows, [Run(kept, 0)], tmp_path) == before and len(before) == 3
    assert finished(Run(kept, 0).folder(tmp_path), rows.config(Run(kept, 0))) is None
    finished_run(rows, Run(kept, 2), tmp_path, error=10.0)
    summaries = collect(rows, [Run(kept, 2)], tmp_path)
    write_records(rows, summaries, tmp_path)
    assert [(line.row, line.seeds, line.error) for line in tabulate(rows, summaries)] == [
        (kept, 3, pytest.approx(9.0)),
        (other, 1, pytest.approx(20.0)),
    ]
    records = read_records(tmp_path)
    assert [(run.seed, record.starts, record.test_error) for run, record in records.items()] == [
        (0, ({"commit": "a"},), 8.0), (1, ({"commit": "a"},), 9.0), (2, (), 10.0), (0, (), 20.0),
    ]  # fmt: skip

    longer = rows_of("contsup/table2", epochs=200)
    assert collect(longer, [Run(kept, 0)], tmp_path)[Run(kept, 0)] is None
    config = longer.config(Run(kept, 0))
    with pytest.raises(ValueError, match=r"has another run of k=1 seed 0:\n  epochs: 160 there, 200 now\nuse"):
        check(Run(kept, 0).folder(tmp_path), config, records[Run(kept, 0)])

    finished_run(rows, Run(kept, 0), tmp_path / "verification", error=8.0, epochs=160, test_loss=0.5)
    assert list(differences(rows, Run(kept, 0), tmp_path)) == []
    finished_run(rows, Run(kept, 1), tmp_path / "verification", error=9.0, epochs=160, test_loss=0.25)
    assert list(differences(rows, Run(kept, 1), tmp_path))[1] == "epoch 160: test_loss 0.5, again 0.25"

    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join([lines[0].replace("test_accuracy", "accuracy"), *lines[1:]]))
    assert list(read_records(tmp_path)) == list(records)[1:]  # the damaged line's run is trained again


def test_the_front_has_the_rows_that_no_other_row_beats(tmp_path):
    assert front([(1.0, 5.0), (2.0, 6.0), (3.0, 2.0), (1.0, 7.0), (3.0, 2.0)]) == [(1.0, 5.0), (3.0, 2.0)]
    rows = rows_of("contsup/table2")
    for row, error, peak in zip(rows.names[:3], (8.0, 9.0, 7.0), (1.0, 0.5, 1.5), strict=True):
        finished_run(rows, Run(row, 0), tmp_path, error=error, peak_of_end_to_end=peak)
    summaries = collect(rows, [Run(row, 0) for row in rows.names[:3]], tmp_path)
    figure = draw_trade_offs(tabulate(rows, summaries), title="table2")
    (axes,) = figure.axes  # no row has the time of a step
    (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert list(zip(*line.get_data(), strict=True)) == [(0.5, 9.0), (1.0, 8.0), (1.5, 7.0)]
    assert draw_trade_offs(tabulate(rows, {}), title="table2") is None


def lines_with(errors: dict[int, float], workdir: Path) -> list[Line]:
    """Lines with these errors by number, all with the same memory."""
    rows, run = rows_of("contsup/table2"), Run("k=1", 0)
    finished_run(rows, run, workdir, error=5.0, epochs=160, peak_of_end_to_end=1.0)
    (line,) = tabulate(rows, collect(rows, [run], workdir))
    return [replace(line, number=number, row=f"k={number}", error=error) for number, error in errors.items()]


def test_the_numbers_of_equal_points_do_not_cover_each_other(tmp_path):
    (axes,) = draw_trade_offs(lines_with(dict.fromkeys(range(1, 34), 5.0), tmp_path), title="").axes
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 34)]
    places = [text.xyann for text in axes.texts]
    assert all(abs(a[0] - b[0]) > 7 or abs(a[1] - b[1]) > 7 for a, b in combinations(places, 2))  # points


@pytest.mark.parametrize(
    ("errors", "scale"),
    [({1: 1.0, 2: 90.0}, "log"), ({1: 10.0, 2: 90.0}, "linear"), ({1: 0.0, 2: 90.0}, "linear")],
    ids=["wide", "narrow", "with zero"],
)
def test_errors_that_differ_much_are_on_a_logarithmic_axis(errors, scale, tmp_path):
    (axes,) = draw_trade_offs(lines_with(errors, tmp_path), title="").axes
    lowest, highest = axes.get_ylim()
    assert axes.get_yscale() == scale
    assert lowest < min(errors.values()) and max(errors.values()) <= highest


def test_a_row_that_one_panel_lacks_is_named_and_not_cut_off(tmp_path):
    lines = lines_with({1: 1.0, 2: 90.0, 3: 2.0, 4: 3.0}, tmp_path)
    timed = [line if line.number == 2 else replace(line, seconds_of_end_to_end=1.0) for line in lines]
    memory, time = draw_trade_offs(timed, title="").axes
    assert [text.get_text() for text in time.texts] == ["1", "3", "4"]
    assert memory.get_yscale() == time.get_yscale() == "log" and time.get_ylim()[1] > 90
    assert "2 k=2" in [text.get_text() for text in time.get_legend().get_texts()]


DISTILLED = {"block_kd": 3.0, "kd": 5.0, "end_to_end": 7.0, "contsup": 4.0}
MODULES = {"end_to_end": None, "block_kd": None, "kd": None}


def summaries(name: str, errors: dict[str, list[float]], **overrides):
    rows = rows_of(name, **overrides)
    found = {}
    for row, values in errors.items():
        for seed, error in enumerate(values):
            config = rows.config(Run(row, seed))
            found[Run(row, seed)] = {
                "method": config.method,
                "network": config.network.name,
                "dataset": config.data.name,
                "modules": MODULES.get(config.method, config.local.modules),
                "test_accuracy": 1 - error / 100,
            }
    return found


def test_errors_over_k_are_curves_with_the_published_ones_dashed():
    errors = {
        "k=1": [7.0, 8.0],
        "k=4,context=E,loss=softmax": [9.0],
        "k=2,context=E,loss=softmax": [7.0, 9.0],
        "k=2,context=R1E,loss=softmax": [6.5],
    }
    figure = draw_errors({**summaries("contsup/table2", errors), Run("k=8", 0): None}, title="table2")
    (axes,) = figure.axes
    curves = {container.get_label(): container for container in axes.containers}
    assert set(curves) == {"E", "R1E"}
    line, _, (bars,) = curves["E"]
    assert line.get_xydata().ravel() == pytest.approx([2, 8.0, 4, 9.0])
    assert bars.get_segments()[0][:, 1] == pytest.approx([8 - 2**0.5, 8 + 2**0.5])
    dashed = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "--"}
    assert set(dashed) == {f"{method}, published" for method in published_errors("resnet32", "cifar10")}
    assert list(dashed["DGL, published"].get_ydata()) == [8.69, 11.48, 14.17, 16.21]
    assert list(dashed["end to end, published"].get_ydata()) == [7.37, 7.37]
    (ours,) = [line for line in axes.lines if line.get_label() == "end to end"]
    assert list(ours.get_ydata()) == pytest.approx([7.5, 7.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "8", "16"]


def test_errors_of_a_single_k_are_bars():
    errors = {"k=1": [7.0], "k=16,context=R0": [16.0], "k=16,context=E": [11.0]}
    (axes,) = draw_errors(summaries("contsup/table1", errors), title="table1").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["end to end", "R0", "E"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([7, 16, 11])
    assert axes.get_xlabel() == "test error %, K=16"
    dashed = {line.get_label(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert dashed["InfoPro softmax, published"] == 14.23


def bars(axes) -> dict[str, float]:
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(labels, [round(bar.get_width(), 6) for bar in axes.patches], strict=True))


def test_rows_of_distillation_are_bars_with_the_names_of_their_methods():
    errors = {f"method={name}": [error] for name, error in DISTILLED.items()}
    found = summaries("blockkd/digits", errors)
    (axes,) = draw_errors(found, title="digits").axes
    assert bars(axes) == {"end to end": 7, "kd": 5, "block_kd": 3, "contsup": 4}
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor() == axes.patches[3].get_facecolor()
    assert axes.get_xlabel() == "test error %"


def test_summaries_of_earlier_versions_count_one_module_for_every_method_but_contsup():
    errors = {f"method={name}": [error] for name, error in DISTILLED.items()}
    found = {run: {**summary, "modules": 1} for run, summary in summaries("blockkd/digits", errors).items()}
    (axes,) = draw_errors(found, title="digits").axes
    assert list(bars(axes)) == ["end to end", "block_kd", "kd", "contsup"]
    assert axes.get_xlabel() == "test error %"


def test_students_of_several_teachers_are_labelled_by_the_pair():
    errors = {
        f"pair={teacher}-mobilenetv2_half,method={method}": [30.0]
        for teacher in ("vgg13", "resnet50_cifar")
        for method in ("kd", "block_kd")
    }
    (axes,) = draw_errors(summaries("blockkd/cifar100", errors), title="cifar100").axes
    assert list(bars(axes))[:2] == ["kd pair=vgg13-mobilenetv2_half", "block_kd pair=vgg13-mobilenetv2_half"]


def test_a_single_row_has_the_name_of_its_method():
    (axes,) = draw_errors(summaries("blockkd/digits", {"method=kd": [5.0]}), title="digits").axes
    assert bars(axes) == {"kd": 5}


@pytest.mark.parametrize("overrides", [{"data.name": "digits"}, {"network.name": "resnet20"}])
def test_published_errors_are_drawn_only_for_their_network_and_data(overrides):
    errors = {"k=16,context=R0": [16.0], "k=16,context=E": [11.0]}
    (axes,) = draw_errors(summaries("contsup/table1", errors, **overrides), title="table1").axes
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]


def taught_by(teacher: str, student: str, methods: tuple[str, ...]):
    errors = {f"pair={teacher}-{student},method={method}": [30.0] for method in methods}
    found = summaries("blockkd/cifar100", errors)
    return {run: {**summary, "teachers": [teacher]} for run, summary in found.items()}


def dashed_lines(axes) -> dict[str, float]:
    return {line.get_label(): float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "--"}


def test_published_errors_of_distillation_are_dashed_for_the_pair_of_student_and_teacher():
    found = taught_by("resnet56", "resnet20", ("dkd", "block_kd"))
    (axes,) = draw_errors(found, title="cifar100").axes
    assert axes.get_title() == "resnet20 on cifar100, teacher resnet56"
    assert dashed_lines(axes) == {
        "end to end, published": 30.94,
        "teacher, published": 27.66,
        "KD, published": 29.34,
        "DKD, published": 28.03,
        "MLKD + LS (480 epochs, 2 views), published": 27.67,
    }
    (axes,) = draw_errors(taught_by("resnet110", "resnet32", ("reviewkd", "kd")), title="cifar100").axes
    assert dashed_lines(axes)["ReviewKD, published"] == 26.11
    other = {run: {**summary, "teachers": ["resnet44"]} for run, summary in found.items()}
    (axes,) = draw_errors(other, title="cifar100").axes
    assert not dashed_lines(axes)


def test_students_of_several_teachers_have_a_panel_for_each_with_the_rows_that_have_none():
    found = taught_by("vgg13", "mobilenetv2_half", ("kd",)) | taught_by("resnet50_cifar", "mobilenetv2_half", ("kd",))
    alone = next(iter(found.values())) | {"method": "end_to_end", "teachers": []}
    figure = draw_errors({**found, Run("method=end_to_end", 0): alone}, title="cifar100")
    assert [axes.get_title() for axes in figure.axes] == [
        f"mobilenetv2_half on cifar100, teacher {teacher}" for teacher in ("vgg13", "resnet50_cifar")
    ]
    assert [list(bars(axes)) for axes in figure.axes] == [["end to end", "kd"], ["end to end", "kd"]]
    assert [dashed_lines(axes)["teacher, published"] for axes in figure.axes] == [25.36, 20.66]


def test_each_data_set_has_a_panel_and_a_single_row_is_drawn_too(tmp_path):
    errors = {"data=cifar10,k=1": [7.0], "data=stl10,k=2,loss=softmax": [22.0]}
    figure = draw_errors(summaries("contsup/table3", errors), title="table3")
    assert [axes.get_title() for axes in figure.axes] == ["resnet110 on cifar10", "resnet110 on stl10"]
    assert not plot_errors({Run("k=1", 0): None}, tmp_path / "picture.png", title="nothing")
    assert not list(tmp_path.iterdir())
