"""The rows of the memory table: each a method, a context and a number of modules, put into a copy of one config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.factory import build
from kd_local.contract import Method
from kd_local.local import ContSup
from kd_local.memory import SummedLosses

END_TO_END = "end_to_end"
REMATERIALIZED = "end_to_end_remat"
NAIVE = "naive"
JOINED = "contsup_joined"
CONTSUP = "contsup"
CONTEXTS_AGAIN = "contsup_remat"
DECODER = "contsup_decoder"
METHODS: tuple[str, ...] = (END_TO_END, REMATERIALIZED, NAIVE, JOINED, CONTSUP, CONTEXTS_AGAIN, DECODER)
"""`contsup_remat` has its context networks rematerialised, the others what the config says."""


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        method: one of `METHODS`.
        modules: K; 1 end to end.
        context: of local learning; None end to end.
    """

    method: str
    modules: int = 1
    context: str | None = None

    def __str__(self) -> str:
        return self.method if self.context is None else f"{self.method} {self.context} K={self.modules}"

    @property
    def form(self) -> str:
        """Of the step, see `kd_local.parallel.FORMS`."""
        return "joined" if self.method == JOINED else "separate"

    def config(self, base: ConfigDict) -> ConfigDict:
        """The config that describes it."""
        config = base.copy_and_resolve_references()
        with config.unlocked():
            config.method = "contsup" if self.context else "end_to_end"
            config.end_to_end.remat = self.method == REMATERIALIZED
            config.local.modules = self.modules
            # A single module has neither context nor decoder.
            config.local.context = self.context if self.context and self.modules > 1 else "R0"
            config.local.decoder = self.method == DECODER and self.modules > 1
            config.local.answer = "last"
            config.local.memory_budget = None
            if self.method == CONTEXTS_AGAIN:
                config.local.remat = "contexts"
            if self.context is None:
                config.local.boundaries = "equal"  # cut it is not, but boundaries by name would not fit one module
            config.mesh.data = 1
        return config

    def identity(self, base: ConfigDict) -> str:
        """The same for rows that are computed alike."""
        # A single module is one program in either form.
        how = (self.method == NAIVE, self.form if self.modules > 1 else "separate")
        return json.dumps([self.config(base).to_dict(), *how], sort_keys=True)


@dataclass(frozen=True)
class Described:
    """A row in the package's own terms.

    Attributes:
        boundaries: the blocks behind which the network is cut.
        shape: height, width and channels of the images.
    """

    method: Method
    boundaries: tuple[str, ...]
    shape: tuple[int, int, int]


def describe(row: Row, base: ConfigDict, platform: str | None = None) -> Described:
    """What a row is, on the devices here or another platform.

    Raises:
        ValueError: as `experiments.factory.build`, for example more modules than the network has blocks.
    """
    experiment = build(row.config(base), platform)
    method = experiment.method
    if row.method == NAIVE:
        assert isinstance(method, ContSup)
        method = SummedLosses(method.cut, method.optimizer)
    return Described(method, experiment.boundaries, experiment.shape)


def rows_of(modules: Sequence[int], contexts: Sequence[str], *, decoders: bool) -> list[Row]:
    """All rows, in the order of the table."""
    local = [(CONTSUP, context) for context in contexts]
    local += [(CONTEXTS_AGAIN, context) for context in contexts if context != "R0"]
    if decoders:
        local += [(DECODER, context) for context in contexts]
    kinds = [(NAIVE, "R0"), (JOINED, "R0"), *local]
    return [Row(END_TO_END), Row(REMATERIALIZED), *(Row(kind, k, context) for kind, context in kinds for k in modules)]


def in_order_of_effort(rows: Sequence[Row]) -> list[Row]:
    """End to end first, which the others are compared with; then those whose pieces are smallest, and what is compiled
    as a whole at last."""

    def effort(row: Row) -> tuple[int, int]:
        if row.context is None:
            return 0, METHODS.index(row.method)
        if row.method in (CONTSUP, CONTEXTS_AGAIN, DECODER):
            return 1 + METHODS.index(row.method), -row.modules
        return 10, row.modules

    return sorted(rows, key=effort)
