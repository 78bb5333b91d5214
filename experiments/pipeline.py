"""Measure modules over devices: python -m experiments.pipeline [--config=FILE.py] [--module=2,4] [--data=2,4]

Trains the config's method for a few steps on each mesh: one device, modules divided over groups of devices, and batches
divided over devices. The table has images per second, busy share, transfers between groups, and memory of a device.
With --target=tpu:v5e nothing is run: the speed is predicted from counts of operations and bytes. The program writes
pipeline.jsonl, and timeline.png with the work of each group. For several devices on a CPU, set
XLA_FLAGS=--xla_force_host_platform_device_count=4.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # the imports below take seconds

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail, numbers, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.folders import workdirs
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import Experiment, build
from experiments.from_config.step_timer import StepTimer
from experiments.tables import say, terminal_table
from experiments.timeline_plot import draw_timeline
from kd_local.files import replace_text
from kd_local.memory import TARGETS, CompilationRecords, group_footprints, target
from kd_local.parallel import Timeline, check_step, device_mesh
from kd_local.paths import read_folder
from kd_local.sizes import MIB

_IGNORED = {
    "mesh.data": "use --data",
    "mesh.module": "use --module",
    "steps": "use --steps",
    "checkpoint.": "nothing is saved",
    "distributed.": "leave it out",
    "local.memory_budget": "name the modules or their number",
    "teacher.cache": "teachers run in each step",
}
"""Keys that the meshes set, or that nothing here depends on, each with the way out."""
LINES, PICTURE = "pipeline.jsonl", "timeline.png"

_CONFIG = define_config()
_MODULE = flags.DEFINE_string("module", "2,4", "Numbers of groups of devices over which the modules are divided.")
_DATA = flags.DEFINE_string("data", "2,4", "Numbers of devices over which a batch is divided.")
_TARGET = flags.DEFINE_string("target", "local", f"Devices to compile for: {', '.join(TARGETS)}.")
_STEPS = flags.DEFINE_integer("steps", 20, "Number of steps of a timed round.", 1, 100_000)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timed rounds of each mesh.", 1, 10_000)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results. The default is runs/pipeline-NETWORK-TARGET.")


@dataclass(frozen=True)
class MeshFigures:
    """The figures of a mesh.

    Attributes:
        images_per_second: median over the rounds; None if nothing is run.
        speed: speed relative to one device, measured, or predicted from the `seconds` of the slowest group.
        seconds: lower bound of each group's time for a batch, see `GroupFootprint`.
        busy: the share of time in which each group works.
        transfer_bytes: bytes of a batch that arrive at each group; the first group receives them from the host.
        device_bytes: peak memory of a device of each group, without waiting batches.
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
        check_given(given_keys(), _IGNORED)
        experiment = build(config, fresh_teachers=True)
        modules = numbers("module", _MODULE.value, example="2,4", lowest=1)
        data = numbers("data", _DATA.value, example="2,4", lowest=1)
        check_used(config, {"mesh.module": (1, *modules), "mesh.data": (1, *data)})
        meshes = [(1, 1), *((each, 1) for each in modules if each > 1), *((1, each) for each in data if each > 1)]
        here = target(_TARGET.value)
        for module, each in meshes:
            if config.batch_size % each:
                raise ValueError(
                    f"a batch of {config.batch_size} cannot be divided over {each} devices: use another --data"
                )
            check_step(experiment.method, device_mesh(each, module, here.devices), experiment.options)
        default = f"runs/pipeline-{config.network.name}-{_TARGET.value.replace(':', '-')}"
        workdir = read_folder(default if _WORKDIR.value is None else _WORKDIR.value, "workdir")
        ENDING.at_end(lock_folder(workdir).release)
        workdirs.claim(workdir, config)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()

    console = Console()
    rates: list[float] = []
    timelines: list[Timeline] = []
    if here.present:
        rates, timelines = _measure(experiment, meshes, config)
    known = CompilationRecords(workdir / "executables.jsonl")
    rows: list[MeshFigures] = []
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
            MeshFigures(
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
        say(console, f"picture: {workdir / PICTURE}")


def _measure(
    experiment: Experiment, meshes: Sequence[tuple[int, int]], config: ConfigDict
) -> tuple[list[float], list[Timeline]]:
    """The images per second of each mesh, as the median of interleaved rounds, and its timeline."""
    runners = [StepTimer(experiment, device_mesh(data, module), config.batch_size) for module, data in meshes]
    for runner in runners:
        runner.run(2)
    seconds = [[runner.run(_STEPS.value) for runner in runners] for _ in range(_ROUNDS.value)]
    rates = [config.batch_size * _STEPS.value / statistics.median(of_one) for of_one in zip(*seconds, strict=True)]
    return rates, [runner.record(_STEPS.value) for runner in runners]


def _table(rows: Sequence[MeshFigures], title: str, measured: bool) -> Table:
    groups = [range(row.module) for row in rows]
    columns = {
        "module": [str(row.module) for row in rows],
        "data": [str(row.data) for row in rows],
        "images a second": ["" if row.images_per_second is None else f"{row.images_per_second:,.0f}" for row in rows],
        "speed": ["" if row.speed is None else f"{row.speed:.2f}" for row in rows],
        "group ms": [" ".join("?" if each is None else f"{each * 1e3:.2f}" for each in row.seconds) for row in rows],
        "busy": [" ".join(f"{share:.2f}" for share in row.busy) for row in rows],
        "transfer MiB": [" ".join(f"{size / MIB:.1f}" for size in row.transfer_bytes) for row in rows],
        "device MiB": [" ".join(f"{size / MIB:.1f}" for size in row.device_bytes) for row in rows],
        "pieces": [
            " ".join(str(row.placement.count(group)) for group in each) for row, each in zip(rows, groups, strict=True)
        ],
    }
    hidden = ("group ms",) if measured else ("images a second", "busy")
    columns = {heading: cells for heading, cells in columns.items() if heading not in hidden}
    caption = f"speed: relative to one device, {'measured' if measured else 'predicted'}; several values: each group's"
    return terminal_table(columns, title=title, caption=caption)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
