import pickle
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import read_state_dict
from kd_local.interop.torch_files import TORCH_SUFFIXES

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


class Executed:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path):
    arrays = {"fc.weight": WEIGHT, "fc.bias": WEIGHT[0].astype(np.float64), "half": WEIGHT.astype(np.float16)}
    read = read_state_dict(saved(tmp_path / "a.npz", **arrays))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_only_the_state_of_an_npz_is_read(tmp_path):
    read = read_state_dict(str(saved(tmp_path / "a.npz", **{"x": WEIGHT, "state/module.fc.weight": WEIGHT})))
    assert list(read) == ["fc.weight"]


def test_module_is_removed_if_all_names_start_with_it(tmp_path):
    both = saved(tmp_path / "a.npz", **{"module.a": WEIGHT, "module.b": WEIGHT})
    one = saved(tmp_path / "b.npz", **{"module.a": WEIGHT, "b": WEIGHT})
    assert list(read_state_dict(both)) == ["a", "b"]
    assert list(read_state_dict(one)) == ["module.a", "b"]


def test_pickles_in_an_npz_are_not_executed(tmp_path):
    path = saved(tmp_path / "a.npz", a=np.array([Executed(tmp_path / "executed")], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz cannot be read, it is damaged or its suffix is wrong: Object arr"):
        read_state_dict(path)
    assert not (tmp_path / "executed").exists()


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none.npz: there is no such file"):
        read_state_dict(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="there is no such file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"a.bin: unknown suffix '.bin': use .npz, .th, .pth, .pt or .tar"):
        read_state_dict(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="empty.npz has no arrays"):
        read_state_dict(saved(tmp_path / "empty.npz"))
    with pytest.raises(ValueError, match="probably bfloat16, which numpy does not know: save float32"):
        read_state_dict(saved(tmp_path / "b.npz", a=WEIGHT.astype(jnp.bfloat16)))


@pytest.mark.parametrize("suffix", [".npz", *TORCH_SUFFIXES])
def test_damaged_files_are_refused(tmp_path, suffix):
    if suffix != ".npz":
        pytest.importorskip("torch")
    good = saved(tmp_path / "good.npz", weight=np.random.default_rng(0).standard_normal(1000)).read_bytes()
    npy, path = tmp_path / "one.npy", tmp_path / f"damaged{suffix}"
    np.save(npy, WEIGHT)
    broken = [
        b"",
        b"no file of weights",
        good[:3000],
        good[:2000] + b"?" + good[2001:],
        npy.read_bytes(),
        pickle.dumps(1),
    ]
    for content in broken if suffix == ".npz" else [*broken, good]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"damaged{suffix} (cannot be read|has no)"):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_the_error_without_torch_has_a_way_out(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    text = "is a file of PyTorch, and torch is not installed: pip install torch, or convert the file .* with python -c "
    with pytest.raises(ModuleNotFoundError, match=text) as error:
        read_state_dict(path)
    assert str(path) in str(error.value)
    line = str(error.value).partition('python -c "')[2].removesuffix('"')
    compile(line, "the line", "exec")
    assert "numpy.savez" in line
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_files_of_torch(tmp_path, suffix, wrapper):
    torch = pytest.importorskip("torch")
    weight = torch.tensor(WEIGHT)
    state = {
        "module.weight": torch.nn.Parameter(weight),
        "module.half": weight.half(),
        "module.bfloat16": weight.bfloat16().T,
        "module.double": weight.double(),
        "module.num_batches_tracked": torch.tensor(3),
    }
    path = tmp_path / f"weights{suffix}"
    torch.save(state if wrapper is None else {"epoch": 7, wrapper: state, "optimizer": {"lr": 0.1}}, path)
    read = read_state_dict(path)
    dtypes = [np.float32, np.float16, jnp.bfloat16, np.float64, np.int64]
    assert {name: x.dtype for name, x in read.items()} == dict(
        zip(("weight", "half", "bfloat16", "double", "num_batches_tracked"), map(np.dtype, dtypes), strict=True)
    )
    for name in ("weight", "half", "double"):
        np.testing.assert_array_equal(read[name], WEIGHT)
    np.testing.assert_array_equal(read["bfloat16"].astype(np.float32), WEIGHT.T)


def test_files_of_torch_without_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"epoch": 7, "state_dict": {"lr": 0.1}}, path)
    with pytest.raises(
        ValueError, match=r"a.pth has no tensors by name but entries 'lr': save a network's state_dict\(\)"
    ):
        read_state_dict(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="a.pth has no tensors by name but list"):
        read_state_dict(path)


def test_pickles_of_torch_are_not_executed(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"fc.weight": torch.zeros(1), "more": Executed(tmp_path / "executed")}, path)
    with pytest.raises(ValueError, match="a.pth cannot be read"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    with pytest.raises(ValueError, match="a.pth cannot be read"):
        read_state_dict(path)
    assert not (tmp_path / "executed").exists()


def test_the_command_of_the_error_converts_the_file(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"net": {"weight": torch.tensor(WEIGHT).bfloat16()}}, path)
    with monkeypatch.context() as without, pytest.raises(ModuleNotFoundError) as error:
        without.setitem(sys.modules, "torch", None)
        read_state_dict(path)
    exec(str(error.value).partition('python -c "')[2].removesuffix('"'), {})
    np.testing.assert_array_equal(read_state_dict(path.with_suffix(".npz"))["weight"], WEIGHT)
