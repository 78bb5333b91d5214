"""The files of a run, its progress on the terminal and its curves."""

import io
import json
import random
from dataclasses import replace

import optax
import pytest
from rich.console import Console

from kd_local.contract import Method
from kd_local.distill import Teacher
from kd_local.files import read_json_lines
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.models import resnet
from kd_local.training.logging import Log, read_epochs, read_steps
from kd_local.training.plots import draw_curves, plot_curves
from kd_local.training.progress import ProgressBar
from kd_local.training.records import EpochRecord, Scores, SplitScores, StepRecord, TrainingPlan
from tests.support.taught import locally_taught

NETWORK = resnet(8, classes=4, widths=(4, 4, 8, 8))
SGD = optax.sgd(0.1)
CUT = cut(NETWORK, 2, classes=4, context="R0")
PLAN = TrainingPlan(0, 12, 4, 8)
METHODS: dict[str, Method] = {
    "contsup": ContSup(CUT, SGD),
    "early exit": ContSup(CUT, SGD, "module00"),
    "ensemble": ContSup(CUT, SGD, "ensemble"),
    "end_to_end": EndToEnd(NETWORK, SGD),
    # Its programs depend on shapes only.
    "teacher": locally_taught(NETWORK, Teacher(NETWORK, {}), (8, 8, 1), SGD),
}


def metrics(method: Method, step: int = 1) -> dict[str, dict[str, float]]:
    """Losses of 1, 2, ... and accuracies of 0.1, 0.2, ... of the programs in order, the losses divided by the step."""
    names = [program.name for program in method.programs()]
    return {name: {"accuracy": i / 10, "loss": i / step} for i, name in enumerate(names, start=1)}


def epoch(step: int, method: Method = METHODS["contsup"]) -> EpochRecord:
    exits = {"ensemble": Scores(0.9, 0.8 - 1 / step), "module00": Scores(1.5, 0.6 - 1 / step)}
    test = SplitScores(1.0, 0.7 - 1 / step, exits)
    return EpochRecord(step / 4, step, metrics(method, step), test, SplitScores(1.1, 0.65), 2.0, 16.0, 0.5)


def test_records_after_the_step_of_the_checkpoint_are_replaced(tmp_path):
    log = Log(tmp_path)
    log.on_start(PLAN)
    for step in (4, 8):
        log.on_epoch(epoch(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # killed in the middle of a line
    assert read_epochs(tmp_path) == [epoch(4), epoch(8)]
    log = Log(tmp_path)
    log.on_start(replace(PLAN, first_step=6))
    for step in (8, 12):
        log.on_epoch(epoch(step))
    for step in range(1, 61):
        log.on_step(StepRecord(step, {"module00": {"loss": 1.0}}))
    log.close()
    assert [record.step for record in read_steps(tmp_path)] == [1, 25, 50]
    first = read_json_lines(tmp_path / "steps.jsonl", dict)[0]
    assert first == {"step": 1, "batch/module00/loss": 1.0, "crc32": "be56bee5"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("crc32") for line in lines)
    assert lines == [epoch(step).to_json() for step in (4, 8, 12)]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        ("", None),
        ('{"epoch": 3, "st', "no JSON"),
        ("\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "a JSON list in place of an object"),
        ("null", "a JSON null in place of an object"),
        ("5", "a JSON number in place of an object"),
        ("{}", "no 'epoch'"),
        ('{"epoch": 2.0, "step": true}', "'step' is True, expected a whole number from 1"),
        (json.dumps(epoch(8).to_json() | {"test/loss": "1"}), "'test/loss' is '1', expected a number"),
        (json.dumps(epoch(8).to_json() | {"train/module00/loss": None}), "'train/module00/loss' is None, expected"),
        (json.dumps(epoch(8).to_json() | {"crc32": "0"}), "checksum differs"),
    ],
)
def test_a_damaged_line_is_named_and_skipped_alone(tmp_path, damaged, problem):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(epoch(step).to_json()).encode() for step in (4, 12)]  # as earlier versions wrote them
    path.write_bytes(lines[0] + b"\n" + damaged.encode("latin1") + b"\n" + lines[1] + b"\n")
    assert read_epochs(tmp_path) == [epoch(4), epoch(12)]
    reports = []
    log = Log(tmp_path, report=reports.append)
    write_steps(log, [1])
    log.on_start(replace(PLAN, first_step=12))
    log.close()
    assert read_epochs(tmp_path) == [epoch(4), epoch(12)] and len(path.read_text().splitlines()) == 2
    assert f"{path} has no record of epoch 2, which" in reports.pop()
    assert len(reports) == (problem is not None)
    if problem is not None:
        assert reports[0].startswith(f"line 2 of {path} is damaged ({problem}")


@pytest.mark.parametrize(
    ("kept", "first_step", "lost"),
    [
        ([4, 8, 12, 16, 20, 24], 24, None),
        ([4, 8, 12, 16, 20], 24, None),  # the record of the state is made again from it
        ([4, 8, 12, 16, 20], 23, None),
        ([4], 24, "epochs 2-5"),
        ([], 23, "epochs 1-5"),
        ([4, 8, 12, 16, 24], 24, "epoch 5"),
        ([8, 20], 24, "epochs 1, 3-4"),
        ([], 4, None),
        ([], 0, None),
    ],
)
def test_lost_records_of_earlier_epochs_are_named(tmp_path, kept, first_step, lost):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(epoch(step).to_json()) + "\n" for step in kept))
    reports = []
    log = Log(tmp_path, report=reports.append)
    write_steps(log, [1])
    log.on_start(TrainingPlan(first_step, 24, 4, 8))
    log.close()
    left_out = "which cannot be made again: curves, times and tables leave out what is missing"
    assert reports == ([] if lost is None else [f"{log.epochs} has no record of {lost}, {left_out}"])
    assert [record.step for record in read_epochs(tmp_path)] == kept


@pytest.mark.parametrize(
    ("kept", "first_step", "lost"),
    [
        ([1, 25, 50], 60, None),
        ([1, 25], 49, None),
        ([], 0, None),
        ([], 60, "3 of the 3 steps that were recorded, which cannot be made again; the first is step 1"),
        ([1, 50], 60, "1 of the 3 steps that were recorded, which cannot be made again; the first is step 25"),
    ],
)
def test_lost_records_of_steps_are_named(tmp_path, kept, first_step, lost):
    reports = []
    log = Log(tmp_path, report=reports.append)
    write_steps(log, kept)
    log.on_start(TrainingPlan(first_step, 100, 100, 8))
    log.close()
    assert reports == ([] if lost is None else [f"{log.steps} has no record of {lost}"])


def write_steps(log, steps):
    lines = (json.dumps(StepRecord(step, {"module00": {"loss": 1.0}}).to_json()) for step in steps)
    log.steps.write_text("".join(line + "\n" for line in lines))


def test_flipped_bits_of_a_record_are_noticed(tmp_path):
    log = Log(tmp_path)
    log.on_start(PLAN)
    log.on_epoch(epoch(4))
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    unnoticed = []
    for place in random.Random(0).sample(range(8 * (len(whole) - 1)), 300):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        if read_epochs(tmp_path) not in ([], [epoch(4)]):
            unnoticed.append(place)
    assert not unnoticed


def test_of_two_records_of_a_step_the_last_counts_and_all_are_in_order(tmp_path):
    records = [epoch(8), epoch(4), replace(epoch(8), seconds=3.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    assert read_epochs(tmp_path) == [epoch(4), replace(epoch(8), seconds=3.0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("contsup", "loss of each module 1.000 2.000\naccuracy 0.200"),
        ("early exit", "loss of each module 1.000 2.000\naccuracy 0.100"),
        ("ensemble", "loss of each module 1.000 2.000"),
        ("end_to_end", "loss 1.000\naccuracy 0.100"),
        ("teacher", "loss of each module 2.000 3.000 4.000\naccuracy 0.400"),
    ],
)
def test_the_bar_shows_losses_of_trained_programs_and_the_deployed_accuracy(name, expected):
    method = METHODS[name]
    # Sorted by name as in the loop, so that a teacher's program comes last.
    shown = dict(sorted(metrics(method).items()))
    assert ProgressBar(Console(file=io.StringIO()), method).metrics_text(shown) == expected


def test_a_line_for_each_epoch():
    out = io.StringIO()
    method = METHODS["teacher"]
    bar = ProgressBar(Console(file=out, width=200), method)
    bar.on_start(replace(PLAN, first_step=2))
    bar.on_step(StepRecord(3, metrics(method)))
    bar.on_epoch(epoch(4, method))
    bar.on_epoch(replace(epoch(8, method), validation=None, data_wait_seconds=0.0))
    assert out.getvalue().splitlines() == [
        "resuming from step 2 of 12",
        "epoch 1/3  step 4  loss 0.500 0.750 1.000  validation 0.6500  test accuracy 0.4500  16 images/s  "
        "waited 25% of the time for images",
        "epoch 2/3  step 8  loss 0.250 0.375 0.500  test accuracy 0.5750  16 images/s",
    ]


def lines(panel):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines}


def test_curves_have_a_panel_for_each_program_that_trains():
    method = METHODS["teacher"]
    batches = [StepRecord(step, metrics(method, step)) for step in (1, 2)]
    figure = draw_curves([epoch(4, method), epoch(8, method)], batches, method=method, title="a run")
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["module00", "module01", "module02", "accuracy"]
    assert all(panel.get_xlabel() == "step" for panel in panels)
    assert [panel.get_ylabel() for panel in panels] == ["training loss"] * 3 + ["accuracy"]
    assert [panel.get_yscale() for panel in panels] == ["log"] * 3 + ["linear"]
    # The teacher's program is the first one: the student's losses begin with 2.
    assert lines(panels[0]) == {"single batches": ([1, 2], [2, 1]), "mean over the epoch": ([4, 8], [0.5, 0.25])}
    assert lines(panels[3]) == {
        "test": ([4, 8], [0.7 - 1 / 4, 0.7 - 1 / 8]),
        "validation": ([4, 8], [0.65, 0.65]),
        "training": ([4, 8], [0.4, 0.4]),  # of the last module, not of the teacher
        "test, ensemble": ([4, 8], [0.8 - 1 / 4, 0.8 - 1 / 8]),
        "test, module00": ([4, 8], [0.6 - 1 / 4, 0.6 - 1 / 8]),
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines(panels[3]))


def test_no_training_accuracy_is_drawn_if_no_program_measures_it():
    method = METHODS["ensemble"]
    figure = draw_curves([epoch(4, method)], [], method=method, title="a run")
    assert "training" not in lines(figure.axes[-1])


def test_losses_that_are_not_positive_are_drawn_on_a_linear_scale():
    method = METHODS["end_to_end"]
    below = replace(epoch(4, method), train={"network": {"accuracy": 0.5, "loss": -1.0}})
    figure = draw_curves([below, epoch(8, method)], [], method=method, title="a run")
    assert figure.axes[0].get_yscale() == "linear"


def test_records_that_were_made_again_are_drawn_and_shown_without_what_is_lost():
    method = METHODS["teacher"]
    again = replace(epoch(8, method), train={}, seconds=0.0, images_per_second=0.0, data_wait_seconds=0.0)
    panels = draw_curves([epoch(4, method), again], [], method=method, title="a run").axes
    assert lines(panels[0])["mean over the epoch"] == ([4], [0.5])
    assert lines(panels[3])["test"][0] == [4, 8] and lines(panels[3])["training"][0] == [4]
    assert not lines(draw_curves([again], [], method=method, title="a run").axes[0])["mean over the epoch"][0]
    bar = ProgressBar(Console(file=(out := io.StringIO()), width=200), method)
    bar.on_start(PLAN)
    bar.on_epoch(again)
    assert out.getvalue() == "epoch 2/3  step 8  validation 0.6500  test accuracy 0.5750  evaluated again\n"


def test_a_single_epoch_is_drawn_as_points(tmp_path):
    method = METHODS["contsup"]
    figure = draw_curves([epoch(4)], [], method=method, title="a run")
    assert figure.axes[0].lines[1].get_marker() == "o"
    plot_curves([epoch(4)], [], tmp_path / "curves.png", method=method, title="a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
