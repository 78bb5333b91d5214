"""Records, and the flat JSON objects that are written for them."""

from kd_local.training.records import EpochRecord, Scores, SplitScores, StepRecord, TrainingPlan

RECORD = EpochRecord(
    epoch=0.5,
    step=6,
    train={"module00": {"accuracy": 0.5, "loss": 2.0}, "teacher": {"loss": 0.1}},
    test=SplitScores(1.0, 0.75, {"ensemble": Scores(0.9, 0.8), "module00": Scores(1.5, 0.6)}),
    validation=SplitScores(1.1, 0.7),
    seconds=2.0,
    images_per_second=24.0,
    data_wait_seconds=0.25,
    learning_rate=0.1,
)
# A line of metrics.jsonl. Its names must not change: programs read folders of earlier versions.
LINE = {
    "epoch": 0.5,
    "step": 6,
    "train/module00/accuracy": 0.5,
    "train/module00/loss": 2.0,
    "train/teacher/loss": 0.1,
    "validation/loss": 1.1,
    "validation/accuracy": 0.7,
    "test/loss": 1.0,
    "test/accuracy": 0.75,
    "test/ensemble/loss": 0.9,
    "test/ensemble/accuracy": 0.8,
    "test/module00/loss": 1.5,
    "test/module00/accuracy": 0.6,
    "seconds": 2.0,
    "images_per_second": 24.0,
    "data_wait_seconds": 0.25,
    "learning_rate": 0.1,
}


def test_an_epoch_is_a_flat_object_with_the_names_of_its_metrics():
    assert list(RECORD.to_json().items()) == list(LINE.items())
    assert EpochRecord.from_json(LINE) == RECORD
    assert RECORD.images == 48


def test_an_epoch_without_validation_split_and_schedule():
    line = {k: v for k, v in LINE.items() if not k.startswith("validation") and k != "learning_rate"}
    record = EpochRecord.from_json(line)
    assert record.validation is None and record.learning_rate is None
    assert list(record.splits) == ["test"]
    assert record.to_json() == line


def test_a_step_is_a_flat_object_with_the_names_of_its_metrics():
    record = StepRecord(25, {"module00": {"accuracy": 0.5, "loss": 2.0}})
    line = {"step": 25, "batch/module00/accuracy": 0.5, "batch/module00/loss": 2.0}
    assert record.to_json() == line
    assert StepRecord.from_json(line) == record


def test_an_incomplete_last_epoch_counts():
    assert TrainingPlan(0, 12, 4, 8).epochs == 3
    assert TrainingPlan(0, 13, 4, 8).epochs == 4
