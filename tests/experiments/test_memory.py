"""The rows of the memory table, their picture, and what identifies a measurement."""

import pytest

from experiments.configs import default
from experiments.memory import measurements as memory_measurements
from experiments.memory.built_rows import build_row, default_modules
from experiments.memory.rows import (
    Row,
    distillation_methods,
    in_order_of_effort,
    rows_of,
    table_config,
)
from experiments.memory.table import MIB, RowFigures, draw
from kd_local.files import read_json_lines
from kd_local.memory import target
from kd_local.parallel import StepOptions


def test_rows_in_order():
    rows = rows_of((1, 4), ("R0", "E"), decoders=True, scanned=False)
    assert list(map(str, rows)) == [
        "end_to_end", "end_to_end_remat", "naive R0 K=1", "naive R0 K=4", "contsup_joined R0 K=1",
        "contsup_joined R0 K=4", "contsup R0 K=1", "contsup R0 K=4", "contsup E K=1", "contsup E K=4",
        "contsup_remat R0 K=1", "contsup_remat R0 K=4", "contsup_remat E K=1", "contsup_remat E K=4",
        "contsup_decoder R0 K=1", "contsup_decoder R0 K=4", "contsup_decoder E K=1", "contsup_decoder E K=4",
    ]  # fmt: skip
    order = in_order_of_effort(rows)
    assert sorted(map(str, order)) == sorted(map(str, rows))
    assert order[0] == Row("end_to_end")
    local = [row.modules for row in order if row.method == "contsup"]
    assert local == [4, 4, 1, 1]
    assert {row.method for row in order[-4:]} == {"naive", "contsup_joined"}
    assert rows_of((4,), ("R0",), decoders=False, scanned=True)[-1] == Row("contsup_remat", 4, "R0")
    more = rows_of((1, 4), ("R0",), decoders=False, scanned=False, auxiliaries=("auglocal",))
    assert list(map(str, more[-2:])) == ["contsup_remat R0 K=4", "contsup auglocal R0 K=4"]


@pytest.mark.exhaustive
def test_rows_of_distillation():
    config = default.get_config()
    config.teacher.network = "resnet14"
    rows = list(map(Row, distillation_methods("fitnet,kd", config)))
    assert list(map(str, rows)) == ["kd", "fitnet"]
    order = in_order_of_effort([*rows_of((1,), ("R0",), decoders=False, scanned=True), *rows[::-1]])
    assert list(map(str, order[:4])) == ["end_to_end", "end_to_end_remat", "kd", "fitnet"]
    config.local.boundaries = "stage2/0"
    described = build_row(Row("contsup", 2, "R0", "teacher"), config)
    assert described.boundaries == ("stage2/0",)
    assert described.blocks == {"module00": ("stem", "stage1/0", "stage2/0"), "module01": ("stage3/0", "head")}
    assert [program.name for program in described.method.programs()] == ["teacher", "module00", "module01"]
    assert build_row(Row("kd"), config).blocks == {"student": described.network.names}


def test_configs_of_rows_differ_only_in_the_rows_keys():
    config = default.get_config()
    config.local.head = "0c1f"
    again = {m.remat for m in build_row(Row("contsup_remat", 3, "E"), config).method.cut_network.modules}
    assert again == {("blocks", "contexts")}
    assert {m.remat for m in build_row(Row("contsup", 3, "E"), config).method.cut_network.modules} == {("contexts",)}
    method = build_row(Row("contsup_decoder", 3, "E"), config).method
    assert [module.reconstruction is not None for module in method.cut_network.modules] == [True, True, False]
    assert "images" in method.cut_network.modules[1].reads
    assert build_row(Row("end_to_end_remat"), config).method.remat
    assert not build_row(Row("end_to_end"), config).method.remat
    built = build_row(Row("contsup", 3, "R0", "auglocal"), config)
    assert [type(module.auxiliary).__name__ for module in built.method.cut_network.modules[:2]] == [
        "ThinnedNetwork"
    ] * 2
    config.local.boundaries = "stem,stage1/0,stage2/0"
    assert build_row(Row("naive", 4, "R0"), config).boundaries == ("stem", "stage1/0", "stage2/0")
    assert build_row(Row("end_to_end"), config).boundaries == ()
    assert (config.local.modules, config.local.context, config.local.decoder) == (4, "R1E", False)  # as it was
    assert Row("contsup", 1, "R0").identity(config) == Row("contsup_decoder", 1, "E").identity(config)
    assert Row("contsup", 3, "R0").identity(config) != Row("contsup_joined", 3, "R0").identity(config)


def test_picture():
    def record(method, modules, context, peak, auxiliary=None):
        return RowFigures(
            method, auxiliary, context, modules, (), "local", 8, peak * MIB, 0, 0, 0, 0, 1.0, None, 1, 1.0, 1, 1, 0.0,
            1, 1.0, None, "network",
        )  # fmt: skip

    records = [record("end_to_end", 1, None, 80), record("end_to_end_remat", 1, None, 40)]
    records += [record("contsup", k, context, 64 // k) for context in ("R0", "E") for k in (4, 2)]
    records += [record("naive", k, "R0", 90) for k in (2, 4)]
    records += [record("kd", 1, None, 85), record("dkd", 1, None, 50)]
    records += [record("contsup", k, "E", 70 // k, "auglocal") for k in (2, 4)]
    (axes,) = draw(records, title="resnet8").axes
    named = {line.get_label(): line for line in axes.get_lines()}
    assert set(named) == {
        "end_to_end", "end_to_end_remat", "contsup R0", "contsup E", "naive R0", "kd", "dkd",
        "auglocal E",
    }  # fmt: skip
    assert set(named["kd"].get_ydata()) == {85}
    assert axes.get_xticks().tolist() == [2, 4]
    colors = [named[name].get_color() for name in ("contsup R0", "contsup E", "kd", "dkd")]
    assert len(set(colors)) == 4
    assert list(named["contsup E"].get_xdata()) == [2, 4]
    assert list(named["contsup E"].get_ydata()) == [32, 16]
    assert list(named["auglocal E"].get_ydata()) == [35, 17]
    assert named["contsup R0"].get_color() != named["contsup E"].get_color()
    assert set(named["end_to_end"].get_ydata()) == {80}


@pytest.mark.exhaustive
@pytest.mark.usually("batch_norm-device")
@pytest.mark.parametrize(("key", "value"), [("shard", "state"), ("batch_norm", "device")])
def test_options_of_the_step_change_the_measurement(key, value, tmp_path):
    """On two devices: a divided state is smaller, and without communication another executable is measured."""
    found = []
    for i, options in enumerate(({}, {key: value})):
        base, folder = default.get_config(), tmp_path / str(i)
        base.mesh.update(options)
        folder.mkdir()
        measurements = memory_measurements.Measurements(base, target("local", devices=2), 2, folder, measure=False)
        values = measurements.of(Row("end_to_end")).values
        digests = {line["digest"] for line in read_json_lines(folder / memory_measurements.EXECUTABLES, dict)}
        found.append((values["state_bytes"], digests))
    (whole, usual), (divided, other) = found
    assert not usual & other
    assert divided < 0.7 * whole if key == "shard" else divided == whole


def test_the_row_sets_the_form_of_the_step():
    base = default.get_config()
    base.mesh.shard = "state"
    assert build_row(Row("contsup_joined", 2, "R0"), base).options == StepOptions(form="joined", shard="state")
    base.step = "joined"
    assert build_row(Row("contsup", 2, "R0"), base).options == StepOptions(shard="state")


@pytest.mark.exhaustive
def test_real_steps_allocate_memory_as_in_training(monkeypatch, tmp_path):
    seen = []

    def observed(*_, environment, **__):
        seen.append(environment["XLA_PYTHON_CLIENT_PREALLOCATE"])

    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the program sets it for itself
    monkeypatch.setattr(memory_measurements, "observe", observed)
    measurements = memory_measurements.Measurements(default.get_config(), target("local"), 1, tmp_path, measure=True)
    measurements.of(Row("end_to_end"))
    assert seen == ["true"]


def test_the_default_numbers_of_modules_are_those_of_the_network():
    config = default.get_config()
    assert default_modules(table_config(config)) == [1, 2, 4]
    config.network.name = "resnet32"
    assert default_modules(table_config(config)) == [1, 2, 4, 8, 16]
