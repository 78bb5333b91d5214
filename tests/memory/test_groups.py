"""The memory of each group of devices, and a lower bound of its time."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.local import ContSup, cut
from kd_local.memory import CompilationRecords, group_footprints, plan_for, target
from kd_local.models import resnet
from kd_local.parallel import StepOptions, device_mesh
from tests.support import tiny

IMAGE, BATCH = (8, 8, 3), 8
METHOD = ContSup(cut(tiny.network(10), 3, classes=10, context="R0"), optax.sgd(0.1))


@pytest.mark.exhaustive
def test_the_time_of_a_group_is_the_sum_over_its_pieces():
    known, here = CompilationRecords(), target()
    (alone,) = group_footprints(METHOD, IMAGE, BATCH, here, records=known)
    assert alone.seconds is None  # how fast these devices are is not known
    pieces = [known.of(call, here) for call in plan_for(METHOD, IMAGE, BATCH, here.mesh).calls]
    # 9 multiply-adds for each of 4 x 3 filters and 64 places of 8 images are the least of the first piece's operations.
    assert pieces[0].flops > 2 * 9 * 4 * 3 * 64 * 8
    for flops, moved in ((1e9, 1e15), (1e15, 1e9)):
        on = replace(here, flops_per_second=flops, bytes_per_second=moved)
        (alone,) = group_footprints(METHOD, IMAGE, BATCH, on, records=known)
        expected = [piece.flops if flops == 1e9 else piece.moved_bytes for piece in pieces]
        assert alone.seconds == pytest.approx(sum(expected) / 1e9)


@pytest.mark.long
def test_each_group_runs_its_own_pieces():
    on = replace(target(), mesh=device_mesh(1, 2), flops_per_second=1e9, bytes_per_second=1e9)
    groups = group_footprints(METHOD, IMAGE, BATCH, on, options=StepOptions(placement=(0, 1, 1)))
    state = METHOD.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    assert [group.pieces for group in groups] == [("module00",), ("module01", "module02")]
    assert all(group.seconds > 0 for group in groups)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state["module00"]))
    assert groups[0].peak_bytes > held
    wide = BATCH * 8 * 8 * 4 * 4
    assert [group.arriving_bytes for group in groups] == [BATCH * (8 * 8 * 3 + 1) * 4, wide + BATCH * 4]


@pytest.mark.exhaustive
def test_groups_are_divided_as_the_step_is():
    # All three pieces differ, on two devices too.
    network = resnet(8, classes=10, widths=(4, 4, 8, 8))
    method = ContSup(cut(network, 3, classes=10, context="R0"), optax.sgd(0.1))
    known, on = CompilationRecords(), replace(target(), mesh=device_mesh(2, 2))
    group_footprints(method, IMAGE, BATCH, on, records=known)
    assert known.compiled == 3
    group_footprints(method, IMAGE, BATCH, on, options=StepOptions(batch_norm="device"), records=known)
    assert known.compiled == 6
