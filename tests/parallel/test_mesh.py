from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from kd_local.parallel import all_devices, device_mesh, groups, on_every_device, over_the_batch


def test_divisible_batches_are_divided():
    mesh = device_mesh(4)
    assert mesh.shape == {"data": 4}
    assert over_the_batch(mesh, 8).spec == PartitionSpec("data")
    assert over_the_batch(mesh, 6).spec == PartitionSpec()
    assert on_every_device(mesh).is_fully_replicated


@pytest.mark.parametrize("data", [0, -1, 9])
def test_more_devices_than_exist_are_refused(data):
    with pytest.raises(ValueError, match=f"a mesh of {data} devices .* but there are 8 .*: use 1 to 8, or on a CPU"):
        device_mesh(data, devices=jax.devices()[:8])


def test_groups_of_devices():
    mesh = device_mesh(2, 3)
    assert mesh.shape == {"module": 3, "data": 2}
    ids = [device.id for device in jax.devices()]
    assert [[device.id for device in group.devices] for group in groups(mesh)] == [ids[0:2], ids[2:4], ids[4:6]]
    assert all(group.shape == {"data": 2} for group in groups(mesh))
    assert all_devices(mesh).shape == {"data": 6}
    assert set(all_devices(mesh).devices.flat) == set(mesh.devices.flat)
    assert groups(device_mesh(2)) == (device_mesh(2),)
    assert all_devices(device_mesh(2)) == device_mesh(2)


class Elsewhere:
    """A device of a process."""

    platform = "cpu"

    def __init__(self, process_index):
        self.process_index = process_index


def test_every_process_has_devices_in_every_group():
    devices: Any = [Elsewhere(process) for process in (0, 0, 0, 0, 1, 1, 1, 1)]
    with pytest.raises(ValueError, match="in 2 processes: use a multiple of 2 for data"):
        device_mesh(1, 2, devices)
    with pytest.raises(ValueError, match="but process 1 has 3 devices, not 4: use fewer"):
        device_mesh(4, 2, [*devices[:4], Elsewhere(0), *devices[4:7]])


def test_more_groups_than_devices_are_refused():
    expected = (
        "a mesh of 4 devices on the data axis and 3 on the module axis, but there are 8 .*: use 8 or fewer in all"
    )
    with pytest.raises(ValueError, match=expected):
        device_mesh(4, 3, jax.devices()[:8])
