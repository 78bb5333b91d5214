"""Measures a method on meshes, and prints the table of them."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.folders import workdirs
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import Experiment, build
from experiments.from_config.step_timer import StepTimer
from experiments.tables import say, terminal_table
from experiments.timeline_plot import draw_timeline
from kd_local.files import replace_text
from kd_local.memory import CompilationRecords, group_footprints, target
from kd_local.parallel import Timeline, check_step, device_mesh
from kd_local.sizes import MIB

LINES, PICTURE = "pipeline.jsonl", "timeline.png"


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


def run(
    config: ConfigDict, meshes: Sequence[tuple[int, int]], on: str, *, steps: int, rounds: int, workdir: Path
) -> None:
    """Measures the config's method on meshes `(module, data)`, and writes the results to a folder.

    Args:
        config: the config.
        meshes: the sizes of the axes `module` and `data` of each mesh; the first is one device.
        on: the target, see `kd_local.memory.target`.
        steps: number of steps of a timed round.
        rounds: number of timed rounds of each mesh.
        workdir: the folder of the results.
    """
    try:
        if on != "local":
            jax.config.update("jax_platforms", "cpu")
        experiment = build(config, fresh_teachers=True)
        here = target(on)
        for module, each in meshes:
            check_step(experiment.method, device_mesh(each, module, here.devices), experiment.options)
        ENDING.at_end(lock_folder(workdir).release)
        workdirs.claim(workdir, config)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()

    console = Console()
    rates: list[float] = []
    timelines: list[Timeline] = []
    if here.present:
        rates, timelines = _measure(experiment, meshes, config, steps, rounds)
    known = CompilationRecords(workdir / "executables.jsonl")
    rows: list[MeshFigures] = []
    for i, (module, each) in enumerate(meshes):
        there = replace(here, mesh=device_mesh(each, module, here.devices))
        groups = group_footprints(
            experiment.method,
            experiment.shape,
            config.batch_size,
            there,
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
    common = {"target": on, "batch": config.batch_size, "jax": jax.__version__}
    replace_text(workdir / LINES, "".join(json.dumps({**asdict(row), **common}) + "\n" for row in rows))
    console.print(_table(rows, f"{config.network.name}, batch {config.batch_size}, {on}", here.present))
    if timelines:
        deepest = max(range(len(meshes)), key=lambda i: meshes[i][0])
        draw_timeline(timelines[deepest]).savefig(workdir / PICTURE, dpi=120)
        say(console, f"picture: {workdir / PICTURE}")


def _measure(
    experiment: Experiment, meshes: Sequence[tuple[int, int]], config: ConfigDict, steps: int, rounds: int
) -> tuple[list[float], list[Timeline]]:
    """The images per second of each mesh, as the median of interleaved rounds, and its timeline."""
    runners = [StepTimer(experiment, device_mesh(data, module), config.batch_size) for module, data in meshes]
    for runner in runners:
        runner.run(2)
    seconds = [[runner.run(steps) for runner in runners] for _ in range(rounds)]
    rates = [config.batch_size * steps / statistics.median(of_one) for of_one in zip(*seconds, strict=True)]
    return rates, [runner.record(steps) for runner in runners]


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
