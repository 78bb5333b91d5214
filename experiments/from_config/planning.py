"""Makes the decisions that need measurements: balanced boundaries, and the number of modules for a memory budget.

The decision is saved in `plan.json` of the run's folder, so that a resumed run has the same modules even if the
compiler has changed.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from kd_local.files import read_json, replace_text
from kd_local.local import REMATERIALIZABLE, ContSup
from kd_local.memory import CompilationRecords, Target, balance, fit, target
from kd_local.parallel import SEPARATE
from kd_local.sizes import parse_bytes, shown_bytes

PLAN = "plan.json"


def left_to_measurement(config: ConfigDict) -> bool:
    """True if a config asks for a decision that needs compilation."""
    return config.method == "contsup" and (
        config.local.boundaries == "balanced" or config.local.memory_budget is not None
    )


def planned(
    config: ConfigDict,
    workdir: Path,
    *,
    on: Target | None = None,
    records: CompilationRecords | None = None,
    report: Callable[[str], None] = print,
) -> ConfigDict:
    """The config with the decided boundaries (by name), number of modules and rematerialisation.

    Args:
        config: a config that `build` accepts. If it needs no measurement, it is returned unchanged.
        workdir: the folder of the plan.
        on: the devices to compile for; None: the local devices of the config's mesh.
        records: known compilations.
        report: called with a sentence about the decision.

    Raises:
        ValueError: nothing fits the budget.
    """
    if not left_to_measurement(config):
        return config
    path = workdir / PLAN
    try:
        hints = {"modules": int, "boundaries": list[str], "remat": str, "peak_bytes": int}
        plan = read_json(path, hints, way_out="restore it, or use another --workdir")
    except FileNotFoundError:
        plan = _plan(config, on, records)
        replace_text(path, json.dumps(plan, indent=2) + "\n")
    report(
        f"measured: {plan['modules']} modules, cut after {', '.join(plan['boundaries']) or 'no block'}, "
        f"rematerialised {plan['remat']}, peak {shown_bytes(plan['peak_bytes'])}"
    )
    return _decided(config, plan["boundaries"], plan["remat"])


def _plan(config: ConfigDict, on: Target | None, records: CompilationRecords | None) -> dict[str, Any]:
    on = target(devices=config.mesh.data) if on is None else on
    known = CompilationRecords() if records is None else records
    platform = on.mesh.devices.flat[0].platform
    experiment = build(config, platform, fresh_teachers=True)
    everything = ",".join(name for name in REMATERIALIZABLE if name != "decoder" or config.local.decoder)

    def make(boundaries: Sequence[str], remat: bool = False) -> ContSup:
        decided = _decided(config, boundaries, everything if remat else config.local.remat)
        method = build(decided, platform, fresh_teachers=True).method
        assert isinstance(method, ContSup)
        return method

    step = {"shape": experiment.shape, "batch": config.batch_size, "target": on, "records": known}
    if config.local.memory_budget is None:
        cut = balance(make, experiment.network, modules=config.local.modules, **step)
        boundaries, remat, peak = cut.boundaries, False, cut.peak_bytes
    else:
        found = fit(make, experiment.network, budget=parse_bytes(config.local.memory_budget), **step)
        boundaries, remat, peak = found.boundaries, found.remat, found.footprint.peak_bytes
    return {
        "modules": len(boundaries) + 1,
        "boundaries": list(boundaries),
        "remat": everything if remat else config.local.remat,
        "peak_bytes": peak,
        "target": on.name,
    }


def _decided(config: ConfigDict, boundaries: Sequence[str], remat: str) -> ConfigDict:
    decided = config.copy_and_resolve_references()
    with decided.unlocked():
        decided.local.modules = len(boundaries) + 1
        # A single name is distinguished from a rule by its content.
        decided.local.boundaries = ",".join(boundaries) if boundaries else "equal"
        decided.local.remat = remat
        decided.local.memory_budget = None
        decided.step = SEPARATE  # as it was measured
    return decided
