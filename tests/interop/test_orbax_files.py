"""Networks as orbax checkpoints."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kd_local.interop import read_orbax, write_orbax
from kd_local.interop.orbax_files import is_orbax
from tests.support import tiny
from tests.support.checkpoints import assert_same_bits

NETWORK = tiny.network()


def test_variables_are_read_with_the_same_bits(tmp_path):
    variables = tiny.variables(NETWORK)
    write_orbax(tmp_path / "orbax", jax.tree.map(jax.numpy.asarray, variables))
    read = read_orbax(tmp_path / "orbax")
    assert list(read["params"]) == ["head", "stage1/0", "stem"]
    assert_same_bits(read, dict(variables))
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_bits(checkpointer.restore(tmp_path / "orbax"), dict(variables))
    jax.tree.map(lambda x: np.testing.assert_equal(type(x), np.ndarray), read)


def test_a_checkpoint_of_arrays_on_devices_is_read_as_numpy_arrays(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"params": {"head": {"bias": jax.numpy.ones(3)}}})
    bias = read_orbax(tmp_path / "orbax")["params"]["head"]["bias"]
    assert type(bias) is np.ndarray and bias.tolist() == [1, 1, 1]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    assert not is_orbax(tmp_path) and not is_orbax(tmp_path / "none")
    with pytest.raises(ValueError, match="is not an orbax checkpoint: expected a folder with a file _METADATA"):
        read_orbax(tmp_path)
    with pytest.raises(ValueError, match="exists: write the checkpoint to a new folder"):
        write_orbax(tmp_path, {"params": {}, "batch_stats": {}})
    write_orbax(tmp_path / "orbax", tiny.variables(NETWORK))
    (tmp_path / "orbax" / "manifest.ocdbt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"orbax cannot be read, it is damaged or incomplete: [^\n]*$"):
        read_orbax(tmp_path / "orbax")
