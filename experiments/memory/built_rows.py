"""Rows of the memory table with their methods and networks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from experiments.memory.rows import NAIVE, SCANNED, Row
from kd_local.contract import Method
from kd_local.local import ContSup, PairTraining
from kd_local.memory import SummedLosses
from kd_local.networks import Network
from kd_local.parallel import StepOptions
from kd_local.training.calls import MOST_STEPS


@dataclass(frozen=True)
class BuiltRow:
    """The method and network of a row.

    Attributes:
        method: the measured method.
        separate: the same step with one program per module; it differs from `method` only in the row `naive`.
        network: the network that is trained; the student in distillation.
        boundaries: names of the blocks after which the network is cut.
        blocks: the names of the blocks that each program of `separate` trains, by the program's name.
        shape: height, width and channels of the images.
        options: how the step is compiled and divided.
    """

    method: Method
    separate: Method
    network: Network
    boundaries: tuple[str, ...]
    blocks: Mapping[str, tuple[str, ...]]
    shape: tuple[int, int, int]
    options: StepOptions


def build_row(row: Row, base: ConfigDict, platform: str | None = None) -> BuiltRow:
    """Builds the method and network of a row for a platform, by default that of the local devices.

    Teachers need no weights.

    Raises:
        ValueError: see `experiments.from_config.experiment.build`; for example, more modules than blocks.
    """
    experiment = build(row.config(base), platform, fresh_teachers=True)
    method, network = experiment.method, experiment.network
    if isinstance(method, ContSup | PairTraining):
        blocks = {module.name: module.names for module in method.cut_network.modules}
    else:
        blocks = {program.name: network.names for program in method.programs()}
    boundaries = tuple(names[-1] for names in blocks.values())[:-1]
    runs = method
    if row.method == NAIVE:
        assert isinstance(method, ContSup)
        runs = SummedLosses(method.cut_network, method.optimizer)
    steps = (base.steps_per_call or MOST_STEPS) if row.method == SCANNED else 1
    options = replace(experiment.options, form=row.form, steps_per_call=steps)
    return BuiltRow(runs, method, network, boundaries, blocks, experiment.shape, options)


def default_modules(base: ConfigDict) -> list[int]:
    """1, 2, 4, 8 and 16, up to the number of blocks of the network."""
    blocks = len(build(base, fresh_teachers=True).network)
    return [modules for modules in (1, 2, 4, 8, 16) if modules <= blocks]
