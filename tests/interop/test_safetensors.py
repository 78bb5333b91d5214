import json

import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import read_state_dict, write_safetensors

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def safetensors(entries, data=b"", metadata=True):
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries} if metadata else entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    entries = {
        "module.half": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
        "module.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    path.write_bytes(safetensors(entries, WEIGHT.tobytes() + np.ones(2, jnp.bfloat16).tobytes()))
    read = read_state_dict(path)
    assert read["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(read["weight"], WEIGHT)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (safetensors({}), "has no arrays"),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "the file ends before a"),
        (
            safetensors({"a": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}),
            "a is F8_E4M3, which numpy doe",
        ),
        (safetensors({"a": {"dtype": "F32"}}), "the entry of a is incomplete"),
        (safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "cannot reshape array"),
        (safetensors({})[:-2], "cannot be read, it is damaged or incomplete: [^\n]*$"),
        (safetensors({"a": [1]}), "the entry of a is incomplete"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, content, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_state_dict(path)


def test_written_files_are_read_with_the_same_bits(tmp_path):
    arrays = {
        "fc.weight": WEIGHT.T,
        "half": np.ones(3, jnp.bfloat16),
        "scale": np.asarray(0.5),
        "count": np.arange(2, dtype=np.int8),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays, {"format": "pt"})
    read = read_state_dict(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


def test_the_header_is_padded_and_tensors_are_sorted_by_the_size_of_their_elements(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.ones(1, np.int8), "b": WEIGHT, "c": np.ones(2)}, {"format": "pt"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and len(content) == 8 + length + 16 + 24 + 1
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "c": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]},
        "a": {"dtype": "I8", "shape": [1], "data_offsets": [40, 41]},
    }
    assert content[8 + length + 16 :][:24] == WEIGHT.tobytes()


def test_arrays_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a is complex64, which safetensors does not have: write it as float32"):
        write_safetensors(tmp_path / "a", {"a": np.ones(1, np.complex64)})
    with pytest.raises(ValueError, match="there are no arrays to write"):
        write_safetensors(tmp_path / "a", {})
    assert not list(tmp_path.iterdir())
