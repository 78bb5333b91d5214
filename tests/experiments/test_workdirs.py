"""Folders of runs: their identity across versions of the package, and for keys that do and do not change a step."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.folders import identity, workdirs
from experiments.sweep.results import check


def config(**changes) -> ConfigDict:
    one = get_config()
    one.update_from_flattened_dict(changes)
    return one


def record(folder: Path, one: ConfigDict, *, without: tuple[str, ...] = (), **extra) -> Path:
    """The folder of a run from a version that lacks some keys and has others."""
    values = one.to_dict()
    for key in without:
        *groups, name = key.split(".")
        section = values
        for group in groups:
            section = section[group]
        del section[name]
    for key, value in extra.items():
        values["local"][key] = value
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


LATER = ("step", "optimizer.accumulate", "mesh.shard", "local.answer")


def test_a_folder_stays_valid_after_keys_were_added(tmp_path):
    folder = record(tmp_path / "run", config(seed=3), without=LATER)
    workdirs.claim(folder, config(seed=3))
    assert workdirs.belongs(folder, config(seed=3))
    record(tmp_path / "other", config(), without=LATER)
    message = r"of another config:\n  optimizer.accumulate: 1 there, 4 now\nkd_local of an earlier version wrote it"
    with pytest.raises(ValueError, match=message):
        workdirs.claim(tmp_path / "other", config(**{"optimizer.accumulate": 4}))


def test_a_default_folder_of_an_older_digest_is_found(tmp_path):
    older = record(tmp_path / "contsup-resnet8-digits-k4-R1E-seed0-01234567", config(), without=LATER)
    record(tmp_path / "contsup-resnet8-digits-k4-R1E-seed0-00000000", config(epochs=31), without=LATER)
    assert workdirs.default_workdir(config(), tmp_path) == older
    changed = workdirs.default_workdir(config(epochs=32), tmp_path)
    assert not changed.exists() and changed.parent == tmp_path
    assert workdirs.default_workdir(config(seed=1), tmp_path).name.startswith("contsup-resnet8-digits-k4-R1E-seed1-")


def test_more_epochs_extend_a_default_folder_where_the_schedule_allows_it(tmp_path):
    constant = {"optimizer.schedule": "constant"}
    few, more = (config(epochs=epochs, **constant) for epochs in (3, 6))
    folder = workdirs.default_workdir(few, tmp_path)
    record(folder, few)
    assert workdirs.default_workdir(more, tmp_path) == folder
    longer = workdirs.default_workdir(config(epochs=5, seed=1, **constant), tmp_path)
    assert longer != folder
    for fewer_or_other in (config(epochs=2, **constant), config(epochs=6), config(epochs=6, batch_size=8, **constant)):
        assert not workdirs.default_workdir(fewer_or_other, tmp_path).exists()
    (folder / "config.json").write_text(json.dumps(more.to_dict()))  # as the extended run does
    assert workdirs.default_workdir(more, tmp_path) == folder
    middle = record(tmp_path / f"{folder.name[:-8]}00000000", config(epochs=4, **constant))
    assert workdirs.default_workdir(config(epochs=5, **constant), tmp_path) == middle
    assert workdirs.default_workdir(config(epochs=9, **constant), tmp_path) == folder


def test_the_name_of_a_default_folder_does_not_depend_on_added_keys(tmp_path, monkeypatch):
    name = workdirs.default_workdir(config(epochs=3), tmp_path)
    more = config().to_dict() | {"added": 7}
    monkeypatch.setattr(identity.default, "get_config", lambda: ConfigDict(more))
    monkeypatch.setattr(identity, "_DEFAULTS", identity.options({}) | identity._effective({}))
    assert workdirs.default_workdir(ConfigDict(more | {"epochs": 3}), tmp_path) == name


@pytest.mark.parametrize(("value", "same"), [(None, True), (3, False)])
def test_an_unknown_recorded_key_binds_if_it_was_set(tmp_path, value, same):
    folder = record(tmp_path / "run", config(), gone=value)
    assert workdirs.belongs(folder, config()) is same
    if not same:
        with pytest.raises(ValueError, match=r"local.gone: 3 there, no such key now"):
            check(folder, config())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"mesh.data": 2}, {"mesh.data": 4}, True),
        ({"mesh.data": 2}, {"mesh.data": 2, "mesh.batch_norm": "device"}, False),
        ({"mesh.data": 4, "mesh.batch_norm": "device"}, {"mesh.data": 2, "mesh.batch_norm": "device"}, False),
        ({}, {"mesh.batch_norm": "device"}, True),  # the same on one device
        ({}, {"mesh.module": 2, "mesh.shard": "state", "mesh.placement": "time"}, True),
        ({}, {"steps": 3, "checkpoint.keep": 1, "data.workers": 2, "distributed.start_seconds": 9}, True),
        ({"method": "kd", "teacher.cache": "/here"}, {"method": "kd", "teacher.cache": "/there"}, True),
        ({"method": "kd"}, {"method": "kd", "teacher.cache": "/there"}, False),
        ({}, {"teacher.weights": "/there", "kd.temperature": 3.0}, True),  # not used
        ({"method": "kd"}, {"method": "kd", "kd.temperature": 3.0}, False),
        ({"method": "end_to_end"}, {"method": "end_to_end", "local.modules": 2, "local.head": "0c1f"}, True),
        ({}, {"optimizer.learning_rate": 0.2}, False),
    ],
)
def test_options_that_bind(tmp_path, one, other, same):
    workdirs.claim(tmp_path, config(**one))
    assert workdirs.belongs(tmp_path, config(**other)) is same
    names = {workdirs.default_workdir(config(**values), tmp_path) for values in (one, other)}
    assert len(names) == (1 if same else 2)


def test_batch_normalisation_is_named_in_the_refusal(tmp_path):
    workdirs.claim(tmp_path, config(**{"mesh.data": 2}))
    with pytest.raises(ValueError, match='mesh.batch_norm: "global" there, "device, of 2" now'):
        workdirs.claim(tmp_path, config(**{"mesh.data": 2, "mesh.batch_norm": "device"}))


EARLIER = {"momentum": 0.9, "nesterov": True, "warmup_rate": 0.01, "milestones": (), "decay": 0.1}
"""What versions before recorded for every optimizer and schedule."""


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        ({}, {}, True),
        ({"name": "adamw"}, {"name": "adamw"}, True),
        ({"schedule": "piecewise", "milestones": (9,)}, {"schedule": "piecewise", "milestones": (9,)}, True),
        ({"warmup_epochs": 0}, {"warmup_epochs": 0}, True),
        ({"momentum": 0.0}, {"momentum": 0.0}, True),
        ({"momentum": 0.8}, {}, False),
        ({"nesterov": False}, {}, False),
        ({"warmup_rate": 0.02}, {}, False),
        (
            {"schedule": "piecewise", "milestones": (9,), "decay": 0.2},
            {"schedule": "piecewise", "milestones": (9,)},
            False,
        ),
    ],
)
def test_recorded_values_that_optimizer_and_schedule_ignore(tmp_path, recorded, now, same):
    def of(values):
        return config(**{f"optimizer.{key}": value for key, value in values.items()})

    folder = record(tmp_path / "run", of(EARLIER | recorded))
    assert workdirs.belongs(folder, of(now)) is same


def test_floats_and_tuples_are_equal_after_json(tmp_path):
    one = config(**{"optimizer.milestones": (10, 20), "optimizer.schedule": "piecewise", "local.aux_width": 0.1 + 0.2})
    workdirs.claim(tmp_path, one)
    read = json.loads((tmp_path / "config.json").read_text())
    assert read["optimizer"]["milestones"] == [10, 20]
    assert workdirs.belongs(tmp_path, one)
    assert identity.options(read) == identity.options(one)


def test_the_version_is_recorded_and_named_when_it_differs(tmp_path):
    workdirs.claim(tmp_path, config())
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values["kd_local"] == workdirs.__version__
    path.write_text(json.dumps(values | {"kd_local": "0.0.1"}))
    assert workdirs.belongs(tmp_path, config())
    with pytest.raises(ValueError, match=rf"kd_local 0.0.1 wrote it, this is {workdirs.__version__}: use that version"):
        workdirs.claim(tmp_path, config(seed=1))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "{}"])
def test_a_damaged_config_is_named_and_belongs_to_no_run(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert not workdirs.belongs(tmp_path, config())
    with pytest.raises(ValueError, match="config.json' is damaged .*: restore it"):
        workdirs.claim(tmp_path, config())
