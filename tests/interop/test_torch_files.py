import argparse
import collections
import datetime
import pickle
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import read_state_dict
from kd_local.interop.pickles import placeholder

TORCH_SUFFIXES = (".pth", "", ".bin")  # the contents count
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


class Executed:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def older_format(path: Path, thing: object) -> None:
    """What torch.save wrote before PyTorch 1.6, without tensors."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, thing, [])
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


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


def test_the_prefix_module_is_removed_if_all_names_have_it(tmp_path):
    both = saved(tmp_path / "a.npz", **{"module.a": WEIGHT, "module.b": WEIGHT})
    one = saved(tmp_path / "b.npz", **{"module.a": WEIGHT, "b": WEIGHT})
    assert list(read_state_dict(both)) == ["a", "b"]
    assert list(read_state_dict(one)) == ["module.a", "b"]


def test_pickles_in_an_npz_are_not_executed(tmp_path):
    path = saved(tmp_path / "a.npz", a=np.array([Executed(tmp_path / "executed")], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz cannot be read, it is damaged or incomplete: Object arrays"):
        read_state_dict(path)
    assert not (tmp_path / "executed").exists()


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none.npz: there is no such file"):
        read_state_dict(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="there is no such file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder: expected a file of weights"):
        read_state_dict(tmp_path)
    with pytest.raises(ValueError, match="empty.npz has no arrays"):
        read_state_dict(saved(tmp_path / "empty.npz"))
    with pytest.raises(ValueError, match="probably bfloat16, which numpy does not know: save float32"):
        read_state_dict(saved(tmp_path / "b.npz", a=WEIGHT.astype(jnp.bfloat16)))


def test_the_format_is_found_by_contents_not_by_suffix(tmp_path):
    path = saved(tmp_path / "a.npz", weight=WEIGHT).rename(tmp_path / "a.pth")
    np.testing.assert_array_equal(read_state_dict(path)["weight"], WEIGHT)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty: copy or download it again"),
        (
            b"no file of weights",
            "is not a file of weights, or its start is damaged: expected one of torch.save, numpy.s",
        ),
        (b"\n<!DOCTYPE html>", "is a web page: download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS: fetch the file with git lfs pull"),
        (b"\x1f\x8b\x08", "is compressed by gzip: unpack it"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "is one array without a name"),
        (bytes(257) + b"ustar", "is a tar archive: unpack it"),
        (pickle.dumps({"weight": WEIGHT}), "is a pickle that torch.save did not write, and reading it would run code"),
        (b"PK\x03\x04 and no archive", "cannot be read, it is damaged or incomplete: File is not a zip file"),
    ],
)
def test_other_contents_are_named(tmp_path, content, text):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_state_dict(path)


def test_damaged_files_are_refused(tmp_path):
    good = saved(tmp_path / "good.npz", weight=np.random.default_rng(0).standard_normal(1000)).read_bytes()
    path = tmp_path / "damaged.npz"
    for content in (good[:3000], good[:2000] + b"?" + good[2001:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged.npz cannot be read, it is damaged or incomplete: [^\n]*$"):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_the_error_without_torch_has_a_way_out(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"weights{suffix}"
    older_format(path, Executed(tmp_path / "executed"))
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


def test_older_versions_of_torch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cu124"))
    older_format(tmp_path / "a.pth", {})
    with pytest.raises(ValueError, match=r"torch 2.5.1\+cu124 is installed, .*: pip install 'torch>=2.6'"):
        read_state_dict(tmp_path / "a.pth")


def test_files_of_torch_without_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"epoch": 7, "state_dict": {"lr": 0.1}}, path)
    with pytest.raises(ValueError, match=r"a.pth has no named tensors, only entries 'epoch', 'state_dict': save a"):
        read_state_dict(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="a.pth has no named tensors, only list"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_results_beside_the_tensors_are_skipped(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    beside = {
        "args": argparse.Namespace(lr=0.1, folder=tmp_path),
        "accuracy": np.float64(77.1),
        "last": (np.float32(1), np.bool_(True), np.int64(3)),
        "curve": np.arange(3.0),
        "objects": np.array([None, 1], dtype=object),
        "dtype": np.dtype("float32"),
        "started": datetime.datetime(2024, 1, 1),
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "recent": collections.deque([1, 2], maxlen=3),
        "seen": {1, 2},
    }
    path = tmp_path / "checkpoint"
    torch.save({"state_dict": {"fc.weight": torch.tensor(WEIGHT)}, **beside}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    read = read_state_dict(path)
    assert list(read) == ["fc.weight"]
    np.testing.assert_array_equal(read["fc.weight"], WEIGHT)


class Settings(dict):
    """A type of a repository."""


def cases(torch, tmp_path):
    state = {"fc.weight": torch.zeros(1)}
    return {
        "Settings besides tensors, and reading these would run code: save the weights": {"a": state, "b": Settings()},
        r"Path.touch besides tensors|(builtins.getattr|_operator.getattr) besides tensors": {
            "a": state, "b": Executed(tmp_path / "executed")
        },
        r"a whole network \(torch.nn.modules.linear.Linear\), and reading it would run code": {
            "model": torch.nn.Linear(2, 2)
        },
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_are_named_and_not_executed(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    for text, thing in cases(torch, tmp_path).items():
        torch.save(thing, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"a.pth holds .*({text})") as error:
            read_state_dict(path)
        assert "\n" not in str(error.value) and "torch.save(network.state_dict(), PATH)" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_programs_protocols_and_damage_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path, pickle_protocol=4)
    with pytest.raises(ValueError, match="a.pth has pickle protocol 4"):
        read_state_dict(path)
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"a.pth cannot be read, it is damaged or incomplete: [^\n]*$"):
        read_state_dict(path)
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"a.pth cannot be read, it is damaged or incomplete: [^\n]*$"):
        read_state_dict(path)


def test_a_placeholder_runs_nothing_of_the_type_it_replaces():
    kind = placeholder("argparse.Namespace")
    assert (kind.__module__, kind.__qualname__) == ("argparse", "Namespace")
    value = kind(1, 2)
    value.__setstate__({"x": 1})
    assert not vars(value)
    assert placeholder("collections.defaultdict")(list) == {} and placeholder("collections.deque")() == []


def test_the_command_of_the_error_converts_the_file(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"net": {"weight": torch.tensor(WEIGHT).bfloat16()}}, path)
    with monkeypatch.context() as without, pytest.raises(ModuleNotFoundError) as error:
        without.setitem(sys.modules, "torch", None)
        read_state_dict(path)
    exec(str(error.value).partition('python -c "')[2].removesuffix('"'), {})
    np.testing.assert_array_equal(read_state_dict(path.with_suffix(".npz"))["weight"], WEIGHT)
