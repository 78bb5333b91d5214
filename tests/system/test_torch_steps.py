"""The steps in PyTorch run in every layout and precision, compiled or not. The compiler starts processes."""

import pytest

from experiments.configs import default
from experiments.configs.blockkd import cifar10
from experiments.speed.rows import SpeedRow

torch = pytest.importorskip("torch")

from experiments.speed.torch_step import TorchStep  # noqa: E402

ROWS = {
    "end_to_end": SpeedRow("end_to_end", None, 1, "nchw", "float32", "pytorch"),
    "contsup": SpeedRow("contsup", "R1E", 2, "nchw", "float32", "pytorch"),
    "kd": SpeedRow("kd", None, 1, "nchw", "float32", "pytorch"),
}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own compiler
@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("form", ["channels_last", "nchw+compile", "channels_last+compile"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_takes_the_same_step(method, form, dtype, monkeypatch, tmp_path):
    """The loss of the second step depends on the gradients of the first."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = cifar10.get_config("method=kd") if method == "kd" else default.get_config()
    config.network.name, config.batch_size = "resnet8", 8
    if method == "kd":
        config.teacher.network, config.teacher.shortcut = "resnet14", "projection"
    row = ROWS[method]
    plain = TorchStep(row, config, 1)
    with torch._inductor.config.patch(compile_threads=1):
        other = TorchStep(SpeedRow(row.method, row.context, row.modules, form, dtype, "pytorch"), config, 1)
    limit = 1e-3 if dtype == "float32" else 0.1
    torch.testing.assert_close(torch.stack(other.step()), torch.stack(plain.step()), rtol=limit, atol=limit)
