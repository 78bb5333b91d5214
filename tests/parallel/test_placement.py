from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import ContSup, Momentum, cut
from kd_local.models import resnet
from kd_local.parallel import (
    StepOptions,
    balanced_placement,
    compile_step,
    device_mesh,
    move,
    over_the_batch,
    plan_step,
    transfers_between_groups,
    with_next,
)
from kd_local.parallel.pieces import pieces_of

KEY = jax.random.key(0)
COSTS = (7, 1, 1, 2, 9, 3, 3, 1)


def slowest(costs, placement):
    return max(sum(cost for cost, at in zip(costs, placement, strict=True) if at == group) for group in set(placement))


@pytest.mark.parametrize("groups", range(1, len(COSTS) + 1))
def test_the_cost_of_the_most_expensive_group_is_minimal(groups):
    placement = balanced_placement(COSTS, groups)
    assert list(placement) == sorted(placement) and set(placement) == set(range(groups))
    # Every way to divide them.
    every = [
        tuple(sum(piece >= start for start in starts) for piece in range(len(COSTS)))
        for starts in combinations(range(1, len(COSTS)), groups - 1)
    ]
    assert slowest(COSTS, placement) == min(slowest(COSTS, each) for each in every)


def test_equal_pieces_are_divided_evenly():
    assert balanced_placement([2] * 6, 3) == (0, 0, 1, 1, 2, 2)
    # Where the most even groups, by their squares, would not have the fastest slowest one: 12, 11, 18.
    assert balanced_placement((6, 6, 5, 6, 9, 9), 3) == (0, 0, 0, 1, 1, 2)
    assert balanced_placement([9, 1, 1, 1, 1], 3) == (0, 1, 1, 2, 2)  # not only the slowest counts


def test_pieces_that_are_tied_stay_together():
    # Without the ties, (0, 0, 1, 2) would be as good.
    assert balanced_placement([3, 1, 3, 3], 3, (False, True, False, False)) == (0, 1, 1, 2)
    with pytest.raises(ValueError, match="^4 groups of devices for 3 pieces of a step: use 1 to 3"):
        balanced_placement([3, 1, 3, 3], 4, (False, True, False, False))


def averaged(modules: int) -> ContSup:
    cut_network = cut(resnet(8, classes=10), modules, classes=10, context="R0", auxiliary=Momentum())
    return ContSup(cut_network, optax.sgd(0.1))


def test_a_moving_average_is_placed_with_the_module_that_it_follows():
    method = averaged(4)
    pieces = pieces_of(method.programs(), "separate")
    assert [piece.name for piece in pieces] == [
        "module00", "average00", "module01", "average01", "module02", "average02", "module03"
    ]  # fmt: skip
    assert with_next(pieces) == (False, True, False, True, False, True, False)
    assert with_next(pieces_of(method.programs(), "joined")) == (False,)
    images, labels = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    plan = plan_step(method, images, labels, mesh=device_mesh(1, 4))
    assert plan.programs == (
        ("module00",), ("average00", "module01"), ("average01", "module02"), ("average02", "module03")
    )  # fmt: skip
    with pytest.raises(ValueError, match="^5 groups of devices for 4 pieces of a step: use 1 to 4"):
        plan_step(method, images, labels, mesh=device_mesh(1, 5))


@pytest.mark.exhaustive
@pytest.mark.parametrize("data", [1, 2])
@jax.numpy_dtype_promotion("standard")
def test_a_moving_average_on_several_groups_is_that_of_one_device(data):
    method, random = averaged(3), np.random.default_rng(0)
    results = []
    with jax.enable_x64(True):
        state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        batches = [random.standard_normal((4, 8, 8, 3)) for _ in range(3)]
        labels = np.arange(4, dtype=np.int32)
        for mesh in (device_mesh(), device_mesh(data, 3)):
            step = compile_step(method, batches[0], labels, state=start, mesh=mesh)
            state = step.place(jax.tree.map(jnp.array, start))
            metrics = []
            for images in batches:
                state, values = step(state, *move((images, labels), over_the_batch(step.plan.groups[0], 4)), KEY)
                metrics.append(values)
            results.append(jax.device_get((state, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11), *results)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match=r"^5 groups of devices for 4 pieces of a step: use 1 to 4 \(mesh.module\), or"
    ):
        balanced_placement([1] * 4, 5)
    with pytest.raises(ValueError, match=r"^0 groups of devices"):
        balanced_placement([1], 0)
    with pytest.raises(ValueError, match=r"^costs are \(1, -1\): use numbers of 0 or more"):
        balanced_placement([1, -1], 1)


def test_bytes_that_move_between_groups():
    method = ContSup(cut(resnet(8, classes=10), 4, classes=10, context="R1E"), optax.sgd(0.1))
    images = jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((6,), jnp.int32)
    plan = plan_step(method, images, labels, mesh=device_mesh(1, 4), options=StepOptions(placement=(0, 1, 2, 3)))
    # float32: images 8x8x3, outputs and inputs (R1) of the modules; labels int32.
    map16, map32, map64 = 8 * 8 * 16 * 4, 4 * 4 * 32 * 4, 2 * 2 * 64 * 4
    ends = [module.names[-1] for module in method.cut_network.modules[:-1]]
    sizes = {"stem": map16, "stage1/0": map16, "stage2/0": map32, "stage3/0": map64}
    always = 8 * 8 * 3 * 4 + 4
    given = [sizes[end] for end in ends]
    supplied = [0, given[0], given[1]]  # each module hands on its own input too, but the first
    expected = tuple(6 * (always + out + kept) for out, kept in zip(given, supplied, strict=True))
    assert transfers_between_groups(plan.calls, plan.placement) == expected


@pytest.mark.exhaustive
def test_the_default_placement_balances_multiply_adds():
    method = ContSup(cut(resnet(8, classes=10), 4, classes=10, context="R0"), optax.sgd(0.1))
    images, labels = np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int32)
    plan = plan_step(method, images, labels, mesh=device_mesh(1, 2))
    assert plan.placement in {(0, 0, 1, 1), (0, 1, 1, 1), (0, 0, 0, 1)}
    names = [program.name for program in method.programs()]
    assert [list(programs) for programs in plan.programs] == [
        [name for name, at in zip(names, plan.placement, strict=True) if at == group] for group in (0, 1)
    ]
    # Another batch size keeps the placement: the state stays where it is.
    assert plan.for_batch(3).placement == plan.placement
    for wrong in ((0, 1), (0, 0, 0, 0), (1, 0, 0, 1), (0, 0, 1, 2)):
        with pytest.raises(ValueError, match="of 4 pieces in 2 groups: use one group per piece, rising from 0 to 1"):
            plan_step(method, images, labels, mesh=device_mesh(1, 2), options=StepOptions(placement=wrong))
