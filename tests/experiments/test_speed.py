"""The speed program times the same steps as training."""

from dataclasses import replace

import pytest

from experiments.configs import default
from experiments.speed.jax_step import JaxStep
from experiments.speed.peaks import peak_flops
from experiments.speed.predicted import predict
from experiments.speed.rows import FORMS, SpeedRow, configured
from kd_local.memory import CompilationRecords, target

STEPS, BATCH = 3, 8


@pytest.mark.long
@pytest.mark.parametrize("form", ("separate", "scanned"))
def test_a_round_is_steps_of_training(form):
    config = default.get_config()
    config.batch_size = BATCH
    step = JaxStep(configured(SpeedRow("end_to_end", None, 1, form, "float32"), config), form, STEPS)
    assert (step._step.many is not None) == (form == "scanned")
    _, metrics = step.dispatch(STEPS)
    assert metrics["network"]["loss"].shape == ((STEPS,) if form == "scanned" else ())
    assert step.predicted_bytes > 0 and step.multiply_adds > 0


def test_end_to_end_does_not_depend_on_modules():
    """A config with 16 modules is no obstacle for a network of 5 blocks."""
    whole = SpeedRow("end_to_end", None, 1, "separate", "float32")
    local = SpeedRow("contsup", "E", 2, "separate", "float32")
    first, other = default.get_config(), default.get_config()
    other.local.modules, other.local.context, other.local.boundaries = 16, "R1E", "stem,stage1/0"
    assert configured(whole, first).to_dict() == configured(whole, other).to_dict()
    assert configured(local, other).local.modules == 2 and configured(local, other).local.context == "E"


def test_the_peak_speed_of_a_device():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 2 * peak_flops("NVIDIA H100 80GB HBM3", "float32")
    assert peak_flops("TPU v5 lite", "float32") == peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("cpu", "float32") is None


@pytest.mark.exhaustive
def test_predictions_of_all_forms():
    """As for a device with these speeds. A call of several steps has the counts of one step."""
    config = default.get_config()
    config.batch_size = BATCH
    on = replace(target(), flops_per_second=1e12, bytes_per_second=1e11)
    found = {}
    for form in FORMS:
        row = SpeedRow("contsup", "R0", 2, form, "float32")
        found[form] = predict(row, config, on, STEPS, CompilationRecords())
        assert found[form]["seconds"] >= max(found[form]["flops"] / 1e12, found[form]["moved_bytes"] / 1e11)
    assert [found[form]["executables"] for form in FORMS] == [2, 1, 1]
    assert found["scanned"]["flops"] == pytest.approx(found["joined"]["flops"], rel=0.2)
    assert found["joined"]["flops"] == pytest.approx(found["separate"]["flops"], rel=0.1)


def test_unknown_forms_and_precisions_are_refused():
    with pytest.raises(ValueError, match="form"):
        SpeedRow("end_to_end", None, 1, "nchw", "float32")
    with pytest.raises(ValueError, match="dtype"):
        SpeedRow("end_to_end", None, 1, "nchw+compile", "float16", "pytorch")
