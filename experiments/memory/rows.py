"""The rows of the memory table. A row is a method, a context and a number of modules, set in a copy of one config."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from experiments.command_line import numbers
from experiments.from_config.experiment import build
from kd_local.contract import Method
from kd_local.distill import OBJECTIVES, LocalDistillation
from kd_local.errors import unknown
from kd_local.local import ContSup
from kd_local.memory import SummedLosses
from kd_local.networks import Network
from kd_local.parallel import StepOptions

END_TO_END = "end_to_end"
REMATERIALIZED = "end_to_end_remat"
NAIVE = "naive"
JOINED = "contsup_joined"
CONTSUP = "contsup"
LOCAL_REMATERIALIZED = "contsup_remat"
DECODER = "contsup_decoder"
KD, BLOCK_KD = "kd", "block_kd"
LOCAL_DISTILLATION = "local_distillation"
DISTILLATION: tuple[str, ...] = (*OBJECTIVES, LOCAL_DISTILLATION)
METHODS: tuple[str, ...] = (
    END_TO_END, REMATERIALIZED, NAIVE, JOINED, CONTSUP, LOCAL_REMATERIALIZED, DECODER, *DISTILLATION
)  # fmt: skip
"""`contsup_remat` rematerialises blocks and context networks; the other methods rematerialise as the config says."""


@dataclass(frozen=True)
class Row:
    """A row of the memory table.

    Attributes:
        method: one of `METHODS`.
        modules: K; 1 for end to end and for distillation other than `local_distillation`.
        context: of local learning; None for other methods.
    """

    method: str
    modules: int = 1
    context: str | None = None

    def __str__(self) -> str:
        words = [self.method, self.context, f"K={self.modules}" if self.context or self.modules > 1 else None]
        return " ".join(filter(None, words))

    @property
    def taught(self) -> bool:
        """True if the method has a teacher."""
        return self.method in DISTILLATION

    @property
    def form(self) -> str:
        """The form of the step, see `kd_local.parallel.FORMS`."""
        return "joined" if self.method == JOINED else "separate"

    def config(self, base: ConfigDict) -> ConfigDict:
        """A copy of the config with the keys of this row set."""
        config = base.copy_and_resolve_references()
        with config.unlocked():
            config.method = self.method if self.taught else "contsup" if self.context else "end_to_end"
            config.end_to_end.remat = self.method == REMATERIALIZED
            config.local.modules = self.modules if self.context else 1
            # A single module has neither context nor decoder.
            config.local.context = self.context if self.context and self.modules > 1 else "R0"
            config.local.decoder = self.method == DECODER and self.modules > 1
            config.local.answer = "last"
            config.local.memory_budget = None
            if self.method == LOCAL_REMATERIALIZED:
                config.local.remat = "blocks,contexts"
            if self.context is None:
                config.local.boundaries = "equal"  # boundaries by name do not fit one module
            config.mesh.data = 1
        return config

    def identity(self, base: ConfigDict) -> str:
        """A text that is equal for rows with the same computation."""
        # A single module is one program in either form.
        how = (self.method == NAIVE, self.form if self.modules > 1 else "separate")
        return json.dumps([self.config(base).to_dict(), *how], sort_keys=True)


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
    if isinstance(method, LocalDistillation):
        blocks = {module.name: module.blocks.names for module in method.modules}
    elif isinstance(method, ContSup):
        blocks = {module.name: module.names for module in method.cut_network.modules}
    else:
        blocks = {program.name: network.names for program in method.programs()}
    boundaries = tuple(names[-1] for names in blocks.values())[:-1]
    runs = method
    if row.method == NAIVE:
        assert isinstance(method, ContSup)
        runs = SummedLosses(method.cut_network, method.optimizer)
    options = replace(experiment.options, form=row.form)
    return BuiltRow(runs, method, network, boundaries, blocks, experiment.shape, options)


def rows_of(modules: Sequence[int], contexts: Sequence[str], *, decoders: bool) -> list[Row]:
    """All rows, in the order of the table."""
    local = [(CONTSUP, context) for context in contexts]
    local += [(LOCAL_REMATERIALIZED, context) for context in contexts]
    if decoders:
        local += [(DECODER, context) for context in contexts]
    kinds = [(NAIVE, "R0"), (JOINED, "R0"), *local]
    return [Row(END_TO_END), Row(REMATERIALIZED), *(Row(kind, k, context) for kind, context in kinds for k in modules)]


def distillation_rows(methods: Sequence[str], base: ConfigDict) -> list[Row]:
    """The rows of these methods with the config's teacher, plain KD first.

    Raises:
        ValueError: a method is unknown, or the config names no teacher; see also
            `experiments.from_config.experiment.build`.
    """
    for name in methods:
        if name not in DISTILLATION:
            raise unknown("distillation method", name, DISTILLATION)
    if methods and not has_teacher(base):
        raise ValueError(
            f"no teacher for {', '.join(methods)}: name its network, such as --config.teacher.network=resnet56; its "
            "weights are not needed"
        )
    rows = [Row(name) for name in sorted(methods, key=DISTILLATION.index)]
    # The number of modules follows from the student's stages.
    return [Row(row.method, len(build_row(row, base).boundaries) + 1) for row in rows]


def has_teacher(config: ConfigDict) -> bool:
    """True if the config names a teacher."""
    return (config.teacher.network or config.teacher.weights) is not None


def in_order_of_effort(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order in which they are measured.

    End to end comes first because the others are compared with it, then distillation. Local learning follows, with the
    smallest pieces first and the jointly compiled rows last.
    """

    def effort(row: Row) -> tuple[int, int]:
        if row.context is None:
            return int(row.taught), METHODS.index(row.method)
        if row.method in (CONTSUP, LOCAL_REMATERIALIZED, DECODER):
            return 2 + METHODS.index(row.method), -row.modules
        return 10, row.modules

    return sorted(rows, key=effort)


def table_config(config: ConfigDict) -> ConfigDict:
    """The config with fixed values for the keys that rows set or that do not change a step's memory.

    Equal tables therefore have equal configs.
    """
    base = Row("end_to_end").config(config)
    base.local.boundaries = config.local.boundaries
    base.seed = 0
    base.steps = None
    return base


def module_numbers(text: str | None, base: ConfigDict) -> list[int]:
    """The numbers of modules in a flag's text. The default: 1, 2, 4, 8 and 16, up to the number of blocks."""
    if text is not None:
        return sorted(numbers("modules", text, example="1,2,4,8,16", lowest=1))
    blocks = len(build(base, fresh_teachers=True).network)
    return [modules for modules in (1, 2, 4, 8, 16) if modules <= blocks]
