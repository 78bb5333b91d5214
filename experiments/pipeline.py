"""Modules over devices, measured: python -m experiments.pipeline [--config=FILE.py] [--module=2,4] [--data=2,4]

Trains the config's method for a few steps on one device, with its modules divided among groups of devices, and with its
batches divided among devices, in turn, and says how many images a second each takes, how busy each group is, what
travels between groups and what a device needs. With --target=tpu:v5e nothing is run: what one could expect there
follows from the operations alone. What is left in the folder: pipeline.jsonl, and timeline.png, which shows which group
worked on which batch when. On a CPU, devices are made by XLA_FLAGS=--xla_force_host_platform_device_count=4, and share
its cores.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.folders import workdirs
from experiments.from_config.experiment import Experiment, build
from experiments.from_config.step_timer import StepTimer
from experiments.timeline_plot import draw_timeline
from kd_local.files import replace_text
from kd_local.memory import TARGETS, CompilationRecords, group_footprints, target
from kd_local.parallel import Timeline, check_step, device_mesh
from kd_local.sizes import MIB

LINES, PICTURE = "pipeline.jsonl", "timeline.png"

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiments/configs/default.py if none.", lock_config=True)
_MODULE = flags.DEFINE_string("module", "2,4", "Numbers of groups of devices among which modules are divided.")
_DATA = flags.DEFINE_string("data", "2,4", "Numbers of devices among which a batch is divided.")
_TARGET = flags.DEFINE_string("target", "local", f"What to compile for: {', '.join(TARGETS)}.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps that are timed at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each mesh has its turn.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results; runs/pipeline-NETWORK-TARGET if none.")


@dataclass(frozen=True)
class Row:
    """A mesh, and what was found.

    Attributes:
        images_per_second: the median of the rounds; None where nothing is run.
        speed: relative to one device: as measured, or, where nothing is run, by `seconds` of the slowest group, without
            what travels between groups.
        seconds: that each group takes for a batch at least, see `GroupFootprint`.
        busy: of each group the share of the time in which it was at work.
        transfer_bytes: that move with a batch to each group, those of the first group from the host.
        device_bytes: peak of a device of each group, without the batches that wait for it.
    """

    module: int
    data: int
    placement: tuple[int, ...]
    images_per_second: float | None
    speed: float | None
    seconds: tuple[float | None, ...]
    busy: tuple[float, ...]
    transfer_bytes: tuple[int, ...]
    device_bytes: tuple[int, ...]


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        if _TARGET.value != "local":
            jax.config.update("jax_platforms", "cpu")
        config = _CONFIG.value
        experiment = build(config, fresh_teachers=True)
        modules, data = _numbers("module", _MODULE.value), _numbers("data", _DATA.value)
        meshes = [(1, 1), *((each, 1) for each in modules if each > 1), *((1, each) for each in data if each > 1)]
        here = target(_TARGET.value)
        for module, each in meshes:
            if config.batch_size % each:
                raise ValueError(f"a batch of {config.batch_size} cannot be divided among {each} devices: see --data")
            check_step(experiment.method, device_mesh(each, module, here.devices), experiment.options)
        workdir = Path(_WORKDIR.value or f"runs/pipeline-{config.network.name}-{_TARGET.value.replace(':', '-')}")
        workdirs.claim(workdir, config)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)

    console = Console()
    rates: list[float] = []
    timelines: list[Timeline] = []
    if here.present:
        rates, timelines = _measure(experiment, meshes, config)
    known = CompilationRecords(workdir / "executables.jsonl")
    rows: list[Row] = []
    for i, (module, each) in enumerate(meshes):
        on = replace(here, mesh=device_mesh(each, module, here.devices))
        groups = group_footprints(
            experiment.method,
            experiment.shape,
            config.batch_size,
            on,
            options=experiment.options,
            records=known,
        )
        estimates = tuple(group.seconds for group in groups)
        slowest = None if None in estimates else max(filter(None, estimates))
        if i == 0:
            alone = slowest
        estimated = None if slowest is None or alone is None else alone / slowest
        speed = rates[i] / rates[0] if rates else estimated
        rows.append(
            Row(
                module,
                each,
                placement=tuple(at for at, group in enumerate(groups) for _ in group.pieces),
                images_per_second=round(rates[i], 1) if rates else None,
                speed=None if speed is None else round(speed, 3),
                seconds=estimates,
                busy=tuple(round(share, 3) for share in timelines[i].busy().values()) if timelines else (),
                transfer_bytes=tuple(group.arriving_bytes for group in groups),
                device_bytes=tuple(group.peak_bytes for group in groups),
            )
        )
    common = {"target": _TARGET.value, "batch": config.batch_size, "jax": jax.__version__}
    replace_text(workdir / LINES, "".join(json.dumps({**asdict(row), **common}) + "\n" for row in rows))
    console.print(_table(rows, f"{config.network.name}, batch {config.batch_size}, {_TARGET.value}", here.present))
    if timelines:
        deepest = max(range(len(meshes)), key=lambda i: meshes[i][0])
        draw_timeline(timelines[deepest]).savefig(workdir / PICTURE, dpi=120)
        console.print(f"picture: {workdir / PICTURE}", soft_wrap=True, highlight=False)


def _measure(
    experiment: Experiment, meshes: Sequence[tuple[int, int]], config: ConfigDict
) -> tuple[list[float], list[Timeline]]:
    """Of each mesh the images a second, as the median of rounds in which all have their turn, and a timeline."""
    runners = [StepTimer(experiment, device_mesh(data, module), config.batch_size) for module, data in meshes]
    for runner in runners:
        runner.run(2)
    seconds = [[runner.run(_STEPS.value) for runner in runners] for _ in range(_ROUNDS.value)]
    rates = [config.batch_size * _STEPS.value / statistics.median(of_one) for of_one in zip(*seconds, strict=True)]
    return rates, [runner.record(_STEPS.value) for runner in runners]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise ValueError(f"--{flag}={text}: use numbers with commas between, such as 2,4") from None
    if any(number < 1 for number in numbers):
        raise ValueError(f"--{flag}={text}: use numbers of 1 or more")
    return numbers


def _table(rows: Sequence[Row], title: str, measured: bool) -> Table:
    table = Table(title=title)
    for name in (
        "module",
        "data",
        "images a second" if measured else "",
        "of one device" if measured else "of one device, by estimates",
        "" if measured else "a batch takes a group, ms, estimated",
        "busy",
        "travels to a group, MiB",
        "a device needs, MiB",
        "pieces of each group",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.module),
            str(row.data),
            "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
            "" if row.speed is None else f"{row.speed:.2f}",
            "" if measured else " ".join("?" if each is None else f"{each * 1e3:.2f}" for each in row.seconds),
            " ".join(f"{share:.2f}" for share in row.busy),
            " ".join(f"{size / MIB:.1f}" for size in row.transfer_bytes),
            " ".join(f"{size / MIB:.1f}" for size in row.device_bytes),
            " ".join(str(row.placement.count(group)) for group in range(row.module)),
        )
    return table


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
