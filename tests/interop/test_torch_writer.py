"""Files as torch.save writes them, written without PyTorch."""

import collections
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import read_state_dict, write_state_dict
from kd_local.interop.pickles import pickled

ARRAYS = {
    "conv.weight": np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2),
    "scale": np.asarray(0.5),
    "transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T,
    "half": np.ones((2, 70), jnp.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "count": np.arange(5),
    "mask": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path) -> Path:
    write_state_dict(tmp_path / "network.pth", ARRAYS)
    return tmp_path / "network.pth"


class Unpickler(pickle.Unpickler):
    """Calls of PyTorch's functions are tuples of their arguments."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return (lambda *arguments: arguments) if name == "_rebuild_tensor_v2" else name

    def persistent_load(self, saved):
        return saved


def test_the_pickle_describes_each_tensor(path):
    assert pickled(path) == (
        (
            "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "torch.DoubleStorage",
            "torch.HalfStorage", "torch.BFloat16Storage", "torch.LongStorage", "torch.BoolStorage",
        ),
        2,
    )  # fmt: skip
    with zipfile.ZipFile(path) as archive, archive.open("network/data.pkl") as stream:
        saved = Unpickler(stream).load()
        assert archive.read("network/version") == b"3\n" and archive.read("network/byteorder") == b"little"
        assert archive.read("network/data/2") == np.ascontiguousarray(ARRAYS["transposed"]).tobytes()
    assert type(saved) is collections.OrderedDict and list(saved) == list(ARRAYS)
    assert saved["conv.weight"] == (("storage", "FloatStorage", "0", "cpu", 48), 0, (4, 3, 2, 2), (12, 4, 2, 1), False,
                                    collections.OrderedDict())  # fmt: skip
    assert saved["scale"][:4] == (("storage", "DoubleStorage", "1", "cpu", 1), 0, (), ())
    assert saved["transposed"][2:4] == ((3, 2), (2, 1))


def test_tensors_are_aligned_and_not_compressed(path):
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = entry.header_offset + 30 + len(entry.filename) + len(entry.extra)
            assert start % 64 == 0 and entry.compress_type == zipfile.ZIP_STORED
            assert path.read_bytes()[start:][: entry.file_size] == archive.read(entry)


def test_equal_arrays_give_equal_files(path, tmp_path):
    write_state_dict(tmp_path / "again.pth", ARRAYS)
    assert (tmp_path / "again.pth").read_bytes() == path.read_bytes()


def test_arrays_that_pytorch_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a is <U1, which PyTorch does not have: write it as float32"):
        write_state_dict(tmp_path / "a.pth", {"a": np.array("x")})
    with pytest.raises(ValueError, match="there are no arrays to write"):
        write_state_dict(tmp_path / "a.pth", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_the_same_bits(path, mapped):
    torch = pytest.importorskip("torch")
    state = torch.load(path, weights_only=True, mmap=mapped)
    assert list(state) == list(ARRAYS)
    for name, tensor in state.items():
        assert tensor.is_contiguous() and not tensor.requires_grad
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        assert bits.numpy().tobytes() == ARRAYS[name].tobytes() and tuple(tensor.shape) == ARRAYS[name].shape


def test_a_file_is_read_with_the_same_bits(path):
    pytest.importorskip("torch")
    read = read_state_dict(path)
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()
