"""What a config leaves to measurement: balanced boundaries, and how many modules fit a memory budget.

Found once, and kept in `plan.json` of the run's folder: the same command resumes with the same modules, whatever the
compiler is by then.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from kd_local.files import replace_text
from kd_local.local import REMATERIALIZABLE, ContSup
from kd_local.memory import CompilationRecords, Target, balance, fit, target
from kd_local.sizes import parse_bytes, shown_bytes

PLAN = "plan.json"


def left_to_measurement(config: ConfigDict) -> bool:
    """Whether a config asks for what only compiling can tell."""
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
    """The config with boundaries by name, the number of modules and what to rematerialise decided.

    Args:
        config: one that `build` accepts; where nothing is left to measurement it is given back.
        workdir: where the plan is, or is put.
        on: what to measure for; if None, the devices here, the batch divided among those of the config's mesh.
        records: compilations that are known already.
        report: is told what is found.

    Raises:
        ValueError: nothing fits the budget.
    """
    if not left_to_measurement(config):
        return config
    path = workdir / PLAN
    plan = json.loads(path.read_text()) if path.exists() else _plan(config, on, records)
    if not path.exists():
        replace_text(path, json.dumps(plan, indent=2) + "\n")
    report(
        f"measured: {plan['modules']} modules, cut behind {', '.join(plan['boundaries']) or 'nothing'}, "
        f"rematerialised {plan['remat']}, peak {shown_bytes(plan['peak_bytes'])}"
    )
    return _decided(config, plan["boundaries"], plan["remat"])


def _plan(config: ConfigDict, on: Target | None, records: CompilationRecords | None) -> dict[str, Any]:
    on = target(devices=config.mesh.data) if on is None else on
    known = CompilationRecords() if records is None else records
    platform = on.mesh.devices.flat[0].platform
    experiment = build(config, platform)
    everything = ",".join(name for name in REMATERIALIZABLE if name != "decoder" or config.local.decoder)

    def make(boundaries: Sequence[str], remat: bool = False) -> ContSup:
        decided = _decided(config, boundaries, everything if remat else config.local.remat)
        method = build(decided, platform).method
        assert isinstance(method, ContSup)
        return method

    where = (experiment.network, experiment.shape, config.batch_size, on)
    if config.local.memory_budget is None:
        network, *rest = where
        cut = balance(make, network, config.local.modules, *rest, records=known)
        boundaries, remat, peak = cut.boundaries, False, cut.peak_bytes
    else:
        found = fit(make, *where, parse_bytes(config.local.memory_budget), records=known)
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
        # A single name is told from a rule by what is in it.
        decided.local.boundaries = ",".join(boundaries) if boundaries else "equal"
        decided.local.remat = remat
        decided.local.memory_budget = None
    return decided
