"""The identity of a run: options, images and teachers. A difference is refused by its key, or reported."""

import json
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.folders import workdirs
from experiments.folders.identity import Identity, compare, options
from experiments.from_config.facts import facts_of_files, facts_of_run
from experiments.from_config.teachers import teachers
from experiments.from_config.weights import save_network
from experiments.sweep.results import check, finished
from kd_local.data import load
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.models import create
from kd_local.training.optimizers import make_optimizer
from tests.support import tiny
from tests.support.prepared import examples, prepare  # noqa: F401

SHAPE = (32, 32, 3)


def config(**changes) -> ConfigDict:
    one = get_config()
    one.update_from_flattened_dict(changes)
    return one


def of(facts: dict, **changes) -> Identity:
    return Identity(options(config(**changes)), facts)


IMAGES = {"images.train": 200, "images.classes": 10, "images.content": "a", "images.files": "f"}
TEACHER = {"teachers": 1, "teachers.0.weights": "w", "teachers.0.file": "f", "teachers.0.mean": [1.0]}


@pytest.mark.parametrize(
    ("there", "now", "refused", "undecided", "noted"),
    [
        (IMAGES, IMAGES, [], [], []),
        ({}, IMAGES, [], [], []),
        (IMAGES, IMAGES | {"images.train": 260}, ["images.train: 200 there, 260 now"], [], []),
        (IMAGES, IMAGES | {"images.content": "b", "images.files": "g"}, ['images.content: "a" there, "b" now'], [], []),
        (IMAGES, IMAGES | {"images.files": "g"}, [], [], ["images.files: other files, of the same content"]),
        (IMAGES, {"images.files": "f"}, [], [], []),
        (IMAGES, {"images.files": "g"}, [], ['images.files: "f" there, "g" now'], []),
        ({"images.files": "f"}, {"images.files": "g"}, ['images.files: "f" there, "g" now'], [], []),
        (TEACHER, TEACHER | {"teachers.0.weights": "v"}, ['teachers.0.weights: "w" there, "v" now'], [], []),
        (TEACHER, TEACHER | {"teachers.0.mean": [2.0]}, ["teachers.0.mean: [1.0] there, [2.0] now"], [], []),
        (TEACHER, {"teachers": 1, "teachers.0.file": "g"}, [], ['teachers.0.file: "f" there, "g" now'], []),
        ({"jax": "0.9"}, {"jax": "0.10"}, [], [], ['jax: "0.9" there, "0.10" now']),
        ({"data.data_dir": "/a"}, {"data.data_dir": "/b"}, [], [], ['data.data_dir: "/a" there, "/b" now']),
    ],
)
def test_differences_of_facts(there, now, refused, undecided, noted):
    found = compare(of(there), of(now))
    assert (list(found.refused), list(found.undecided), list(found.noted)) == (refused, undecided, noted)


def test_a_teacher_may_move_if_its_digest_is_known():
    here, elsewhere = ({"method": "kd", "teacher.weights": f"/{place}/teacher"} for place in "ab")
    moved = compare(of(TEACHER, **here), of(TEACHER, **elsewhere))
    assert not moved.refused and moved.noted == ('teacher.weights: "/a/teacher" there, "/b/teacher" now',)
    assert compare(of({}, **here), of(TEACHER, **elsewhere)).refused
    two = TEACHER | {"teachers": 2, "teachers.1.weights": "x"}
    assert "teachers: 1 there, 2 now" in compare(of(TEACHER, **here), of(two, **elsewhere)).refused


@pytest.mark.parametrize("schedule", ["constant", "piecewise", "contsup", "cosine", "linear"])
def test_epochs_may_change_if_past_learning_rates_stay(schedule):
    values = {"optimizer.schedule": schedule, "optimizer.warmup_epochs": 1}
    if schedule == "piecewise":
        values |= {"optimizer.milestones": (2, 4)}
    longer = compare(of({}, epochs=6, **values), of({}, epochs=9, **values))
    free = schedule in ("constant", "piecewise")
    assert longer.refused == (() if free else ("epochs: 6 there, 9 now",))
    assert ("epochs" in of({}, epochs=6, **values).binding) is not free
    other = compare(of({}, epochs=6, **values), of({}, epochs=9, **{**values, "optimizer.warmup_epochs": 2}))
    assert "optimizer.warmup_epochs: 1 there, 2 now" in other.refused


def test_options_and_facts_that_a_checkpoint_must_agree_with():
    facts = IMAGES | TEACHER | {"jax": "0.10", "kd_local": "1", "data.data_dir": "/a"}
    binding = of(facts, seed=3, steps=7, **{"teacher.weights": "/a"}).binding
    assert binding == {
        "seed": 3, "images.train": 200, "images.classes": 10, "images.content": "a",
        "teachers": 1, "teachers.0.weights": "w",
    }  # fmt: skip
    assert of({"images.files": "f"}).binding == {"images.files": "f"}


def test_other_or_additional_images_of_a_data_set_are_refused(prepare, examples, tmp_path):  # noqa: F811
    found = {}
    for name, images in (("first", examples(20, SHAPE, 10)), ("second", examples(20, SHAPE, 5)), ("grown", None)):
        splits = {"train": images or examples(30, SHAPE, 10), "test": examples(10, SHAPE, 10)}
        shutil.rmtree(tmp_path / "cifar10", ignore_errors=True)
        data_dir = prepare("cifar10", **splits).rename(tmp_path.parent / f"{tmp_path.name}-{name}")
        tmp_path.mkdir()
        one = config(**{"data.name": "cifar10", "data.data_dir": str(data_dir)})
        found[name] = one, facts_of_run(one, None, load("cifar10", data_dir=data_dir))
    folder = tmp_path / "run"
    assert workdirs.claim(folder, *found["first"]) == ()
    assert workdirs.claim(folder, *found["first"]) == ()
    with pytest.raises(ValueError, match=r"a run of other images:\n  images.content: \w{12} there, \w{12} now\nuse an"):
        workdirs.claim(folder, *found["second"])
    with pytest.raises(ValueError, match="images.train: 20 there, 30 now"):
        workdirs.claim(folder, *found["grown"])
    with pytest.raises(ValueError, match="images.train: 20 there, 30 now"):
        check(folder, found["grown"][0])  # a sweep looks at the files alone
    check(folder, found["second"][0])  # whose content is for the training program to compare
    assert not workdirs.belongs(folder, found["second"][0], facts_of_files(found["second"][0]))
    moved = shutil.copytree(found["first"][0].data.data_dir, tmp_path / "moved")
    (note,) = workdirs.claim(
        folder,
        config(**{"data.name": "cifar10", "data.data_dir": str(moved)}),
        found["first"][1] | {"data.data_dir": str(moved)},
    )
    assert note.startswith("data.data_dir: ")


def test_a_folder_without_facts_gets_them_with_a_note(tmp_path):
    workdirs.claim(tmp_path, config())
    assert not (tmp_path / "identity.json").exists()
    (note,) = workdirs.claim(tmp_path, config(), IMAGES)
    assert "it has no identity.json" in note
    assert json.loads((tmp_path / "identity.json").read_text()) == IMAGES
    with pytest.raises(ValueError, match="images.train: 200 there, 3 now"):
        workdirs.claim(tmp_path, config(), {"images.train": 3})
    for text in ("[]", "{", "5"):
        (tmp_path / "identity.json").write_text(text)
        with pytest.raises(ValueError, match="identity.json' is damaged .*: restore it"):
            workdirs.claim(tmp_path, config(), IMAGES)


def distillation(found: tuple[Teacher, ...]) -> Distillation:
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.1))
    return Distillation(tiny.network(10), found, OBJECTIVES["kd"](), optimizer)


def test_an_exchanged_teacher_is_refused(teacher_run, tmp_path):
    teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
    one, data = config(method="kd", **{"teacher.weights": str(teacher)}), load("digits")

    def facts(of: ConfigDict) -> dict:
        usual = data.augmentation.mean, data.augmentation.std
        return facts_of_run(of, distillation(teachers(of, classes=10, shape=(8, 8, 1), normalisation=usual)), data)

    workdirs.claim(tmp_path / "run", one, facts(one))
    moved = config(method="kd", **{"teacher.weights": str(shutil.copytree(teacher, tmp_path / "moved"))})
    (note,) = workdirs.claim(tmp_path / "run", moved, facts(moved))
    assert note.startswith("teacher.weights: ")
    network = create("resnet8", classes=10)
    save_network(network.init(jax.random.key(2), jnp.zeros((1, 8, 8, 1))), teacher)
    with pytest.raises(ValueError, match=r"a run of other teachers:\n  teachers.0.weights: \w{12} there"):
        workdirs.claim(tmp_path / "run", one, facts(one))
    assert not workdirs.belongs(tmp_path / "run", one, facts_of_files(one))  # no row of a sweep is done with it
    assert workdirs.belongs(tmp_path / "run", moved, facts_of_files(moved))


@pytest.mark.parametrize(("limit", "far"), [({"epochs": 6}, True), ({"epochs": 3}, False), ({"steps": 12}, False)])
def test_runs_of_different_epochs_differ(tmp_path, limit, far):
    constant = {"optimizer.schedule": "constant", "optimizer.warmup_epochs": 0}
    workdirs.claim(tmp_path, config(epochs=6, **constant))
    summary = {
        "method": "contsup", "network": "resnet32", "dataset": "digits", "modules": 8, "epochs": 6, "steps": 138,
        "test_accuracy": 0.9, "train_seconds": 1.0, "images_per_second": 1.0, "parameters_trained": 1,
        "parameters_deployed": 1, "multiply_adds": 1,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    wanted = config(**({"epochs": 9} | limit), **constant)
    assert (finished(tmp_path, wanted) is not None) is far
    saved = tmp_path / "checkpoints" / "138"
    saved.mkdir(parents=True)
    workdirs.check_steps(tmp_path, 69)  # unfinished: it has no manifest
    (saved / "manifest.json").touch()
    workdirs.check_steps(tmp_path, 138)
    with pytest.raises(ValueError, match="already has 138 steps, and this one ends after 69: nothing is left to do"):
        workdirs.check_steps(tmp_path, 69)


def test_the_steps_of_a_renamed_checkpoint_are_those_of_its_contents(tmp_path):
    """Where it is read, the error says so."""
    checkpoint = tmp_path / "checkpoints" / "99"
    checkpoint.mkdir(parents=True)
    for name, text in (("manifest.json", "{}"), ("origin.json", '{"step": 15, "run": null}')):
        (checkpoint / name).write_text(text)
    workdirs.check_steps(tmp_path, 15)
    with pytest.raises(ValueError, match="already has 15 steps"):
        workdirs.check_steps(tmp_path, 7)
    (checkpoint / "origin.json").write_text("[]")
    with pytest.raises(ValueError, match="already has 99 steps"):
        workdirs.check_steps(tmp_path, 15)
