import json

import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import read_state_dict

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
