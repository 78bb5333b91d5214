"""Budgets that are ample, tight and impossible."""

from dataclasses import replace

import optax
import pytest

from kd_local.local import ContSup, EndToEnd, cut
from kd_local.memory import CompilationRecords, balance, fit, footprint, target
from kd_local.models import create

NETWORK = create("resnet8", classes=10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)
HERE = target()
WHERE = {"shape": (32, 32, 3), "batch": 32, "target": HERE}
KNOWN = CompilationRecords()


def make(boundaries, remat, network=NETWORK):
    parts = ("blocks", "contexts") if remat else ()
    return ContSup(cut(network, classes=10, boundaries=boundaries, context="R0", remat=parts), OPTIMIZER)


def fitted(budget, **options):
    return fit(make, NETWORK, **WHERE, budget=budget, records=KNOWN, compilations=8, **options)


@pytest.fixture(scope="module")
def whole():
    return footprint(EndToEnd(NETWORK, OPTIMIZER), **WHERE, records=KNOWN).peak_bytes


def lowest(modules, remat, compilations=8):
    search = lambda boundaries: make(boundaries, remat)
    return balance(search, NETWORK, modules=modules, **WHERE, records=KNOWN, compilations=compilations).peak_bytes


@pytest.mark.exhaustive
def test_the_smallest_number_of_modules_that_fits():
    network = create("resnet14", classes=10)
    remade = lambda boundaries, remat: make(boundaries, remat, network)
    whole = footprint(EndToEnd(network, OPTIMIZER), **WHERE, records=KNOWN).peak_bytes
    budget = int(0.6 * whole)
    options = {"records": KNOWN, "compilations": 8}
    found = fit(remade, network, **WHERE, budget=budget, remats=(False,), **options)
    assert len(found.boundaries) == len(found.footprint.pieces) - 1 == found.modules - 1 > 0
    measured = footprint(make(found.boundaries, False, network), **WHERE, records=KNOWN)
    assert found.footprint == measured and not found.remat
    plain = lambda boundaries: make(boundaries, False, network)
    fewer = balance(plain, network, modules=found.modules - 1, **WHERE, **options)
    assert measured.peak_bytes <= budget < fewer.peak_bytes
    assert found.boundaries == balance(plain, network, modules=found.modules, **WHERE, **options).boundaries


@pytest.mark.exhaustive
def test_fit_rematerialises_before_it_adds_modules(whole):
    remat = lowest(1, True)
    assert remat < 0.9 * whole
    found = fitted(remat)
    assert (found.modules, found.boundaries, found.remat) == (1, (), True)
    assert found.footprint.peak_bytes == remat


@pytest.mark.exhaustive
def test_fit_chooses_end_to_end_if_it_fits(whole):
    found = fitted(2 * whole)
    assert (found.modules, found.boundaries, found.remat) == (1, (), False)
    assert 0.95 * whole < found.footprint.peak_bytes < 1.05 * whole
    roomy = {**WHERE, "target": replace(HERE, capacity=2 * whole)}
    assert fit(make, NETWORK, **roomy, records=KNOWN) == found


@pytest.mark.exhaustive
def test_a_budget_that_nothing_fits_is_refused_with_the_lowest_peak():
    with pytest.raises(ValueError) as error:
        fitted(2**20, remats=(False,))
    text = str(error.value)
    equal = {k: lowest(k, False, compilations=0) for k in (1, 2, 4, 5)}
    modules = min(equal, key=equal.get)
    peak = lowest(modules, False)
    assert text.startswith(
        f"nothing fits into 1.0 MiB (1048576 bytes): the lowest peak found is {peak / 2**20:.1f} MiB ({peak} bytes), "
        f"with {modules} modules (cut after stem, "
    )
    assert "not rematerialised; largest first: temporary memory of module0" in text
    assert text.endswith("; use a smaller batch, or a larger budget")
    order = [
        text.index(part) for part in ("temporary memory", "tensors carried", "parameters, statistics and optimizer")
    ]
    assert order == sorted(order)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="the memory of target 'local' is not known: give a budget, such as"):
        fit(make, NETWORK, **{**WHERE, "target": replace(HERE, capacity=None)})
    with pytest.raises(ValueError, match="budget is 0 bytes: use 1 or more"):
        fitted(0)
    with pytest.raises(ValueError, match=r"remats is empty: use \(False,\), \(True,\) or \(False, True\)"):
        fitted(2**30, remats=())
