import jax
import pytest
from jax.sharding import PartitionSpec

from kd_local.parallel import data_mesh, on_every_device, over_the_batch


def test_batches_are_divided_where_they_divide():
    mesh = data_mesh(4)
    assert mesh.shape == {"data": 4}
    assert over_the_batch(mesh, 8).spec == PartitionSpec("data")
    assert over_the_batch(mesh, 6).spec == PartitionSpec()
    assert on_every_device(mesh).is_fully_replicated


@pytest.mark.parametrize("data", [0, -1, 9])
def test_devices_that_are_not_there(data):
    with pytest.raises(ValueError, match=f"a mesh of {data} devices .* but there are 8 .*: use 1 to 8, or on a CPU"):
        data_mesh(data, jax.devices()[:8])
