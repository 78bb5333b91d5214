"""Balanced cuts against all possible cuts."""

from itertools import combinations

import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.costs import tree_bytes
from kd_local.local import ContSup, PixelScale, cut, equal_layers
from kd_local.memory import CompilationRecords, balance, footprint, target
from kd_local.memory.estimates import Estimates
from kd_local.memory.search import lowest_peak
from kd_local.models import create

SMALL = create("resnet8", classes=10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)
HERE = target()
WHERE = {"shape": (32, 32, 3), "batch": 16, "target": HERE}
KNOWN = CompilationRecords()


def maker(context, network=SMALL, **options):
    return lambda boundaries: ContSup(
        cut(network, classes=10, boundaries=boundaries, context=context, **options), OPTIMIZER
    )


def every_cut(network, modules):
    return list(combinations(network.names[:-1], modules - 1))


def peak(make, boundaries):
    return footprint(make(boundaries), **WHERE, records=KNOWN).peak_bytes


@pytest.mark.usually("R0-3")
@pytest.mark.parametrize(("context", "modules"), [("R0", 3), ("R1", 3)])
@pytest.mark.exhaustive
def test_balance_finds_the_cut_with_the_lowest_peak(context, modules):
    make = maker(context)
    peaks = {boundaries: peak(make, boundaries) for boundaries in every_cut(SMALL, modules)}
    found = balance(make, SMALL, modules=modules, **WHERE, records=KNOWN)
    assert found.peak_bytes == peaks[found.boundaries] == min(peaks.values())
    assert peaks[found.boundaries] <= peaks[equal_layers(SMALL, modules)] < max(peaks.values())


@pytest.mark.exhaustive
def test_a_search_with_few_compilations_gives_a_measured_cut():
    make, equal = maker("R0"), equal_layers(SMALL, 3)
    assert balance(make, SMALL, modules=3, **WHERE, records=KNOWN, compilations=0).boundaries == equal
    records = CompilationRecords()
    found = balance(make, SMALL, modules=3, **WHERE, records=records, compilations=2)
    assert records.compiled <= 5
    assert found.peak_bytes == peak(make, found.boundaries) <= peak(make, equal)


@pytest.mark.exhaustive
def test_known_records_save_compilations_and_change_nothing_else(tmp_path):
    make, path = maker("R0"), tmp_path / "executables.jsonl"
    first = balance(make, SMALL, modules=3, **WHERE, records=CompilationRecords(path), compilations=3)
    again = CompilationRecords(path)
    assert balance(make, SMALL, modules=3, **WHERE, records=again, compilations=3) == first
    assert again.compiled == 0


@pytest.mark.usually("4-R0-options0")
@pytest.mark.parametrize(
    ("context", "options"),
    [
        ("R0", {}),
        ("E", {"decoder": PixelScale((125.0,) * 3, (63.0,) * 3)}),
        ("R1", {}),
        ("R2E", {"remat": ("blocks", "contexts")}),
        ("R3", {"aux_width": 8.0, "feature_width": 1024}),
    ],
)
@pytest.mark.parametrize("modules", [1, 2, 4])
def test_dynamic_programming_finds_the_lowest_estimate(context, options, modules):
    network = create("resnet14", classes=10)
    make = maker(context, network, **options)
    estimates = Estimates(make(equal_layers(network, modules)), network, (8, 8, 3), 4)
    need = lambda kind: estimates.of(kind).need

    def estimate(boundaries):
        kinds = estimates.kinds(boundaries)
        return max(map(need, kinds)) + state_of(estimates, boundaries)

    lowest = min(map(estimate, every_cut(network, modules)))
    assert estimate(lowest_peak(estimates, need, modules, 2**60)) == lowest
    assert lowest_peak(estimates, need, modules, lowest) is None


def state_of(estimates, boundaries):
    return estimates.state + sum(estimates.of(kind).state for kind in estimates.kinds(boundaries))


def test_estimates_count_what_is_carried_and_saved():
    # Nothing but the stem: a 3x3 convolution to 16 channels, normalised, with ReLU.
    estimates = Estimates(maker("R0")(("stem",)), SMALL, (8, 8, 3), 4)
    image, features = 4 * 8 * 8 * 3 * 4, 4 * 8 * 8 * 16 * 4
    assert estimates.of(estimates.kinds(("stem",))[0]).need >= image + 3 * features
    # With rematerialised blocks, only the inputs of blocks are saved, and the activations of one block at a time.
    whole = [Estimates(maker("R0", remat=remat)(()), SMALL, (8, 8, 3), 4) for remat in ((), ("blocks",))]
    plain, remat = (estimates.of(estimates.kinds(())[0]).need for estimates in whole)
    assert features < remat < plain


@pytest.mark.exhaustive
def test_estimates_include_the_state_of_all_modules():
    for context in ("R0", "R1E"):
        make = maker(context)
        for boundaries in every_cut(SMALL, 3)[::5]:
            estimates = Estimates(make(boundaries), SMALL, (8, 8, 3), 4)
            expected = footprint_state(make(boundaries))
            assert abs(state_of(estimates, boundaries) - expected) < 0.001 * expected


def footprint_state(method):
    state = jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    return tree_bytes(state)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="compilations is -1: use 0, which keeps the cut of equal layers, or more"):
        balance(maker("R0"), SMALL, modules=3, **WHERE, compilations=-1)
    with pytest.raises(ValueError, match="6 modules for a network of 5 blocks: use 1 to 5"):
        balance(maker("R0"), SMALL, modules=6, **WHERE)
    with pytest.raises(ValueError, match="batch is 0: use a whole number from 1"):
        balance(maker("R0"), SMALL, modules=3, **{**WHERE, "batch": 0})
