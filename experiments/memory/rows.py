"""The rows of the memory table. A row is a method, a context and a number of modules, set in a copy of one config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs.combination import DISTILLATION
from experiments.configs.contradictions import check_files
from experiments.configs.objectives import PAIRS
from kd_local.errors import unknown

END_TO_END = "end_to_end"
REMATERIALIZED = "end_to_end_remat"
NAIVE = "naive"
JOINED = "contsup_joined"
SCANNED = "contsup_scanned"
CONTSUP = "contsup"
LOCAL_REMATERIALIZED = "contsup_remat"
DECODER = "contsup_decoder"
KD, BLOCK_KD = "kd", "block_kd"
METHODS: tuple[str, ...] = (
    END_TO_END, REMATERIALIZED, NAIVE, JOINED, SCANNED, CONTSUP, LOCAL_REMATERIALIZED, DECODER, *PAIRS, *DISTILLATION
)  # fmt: skip
"""`contsup_scanned` runs several joined steps per call, and the devices hold the training images.
`contsup_remat` rematerialises blocks and context networks; the other methods rematerialise as the config says.
`hpff` has decoders."""


@dataclass(frozen=True)
class Row:
    """A row of the memory table.

    Attributes:
        method: one of `METHODS`.
        modules: K; 1 for end to end and for distillation.
        context: of local learning; None for other methods.
        auxiliary: the auxiliary network of local learning; None for the config's.
    """

    method: str
    modules: int = 1
    context: str | None = None
    auxiliary: str | None = None

    def __str__(self) -> str:
        modules = f"K={self.modules}" if self.context or self.modules > 1 else None
        words = [self.method, self.auxiliary, self.context, modules]
        return " ".join(filter(None, words))

    @property
    def taught(self) -> bool:
        """True if the method has a teacher."""
        return self.method in DISTILLATION

    @property
    def form(self) -> str:
        """The form of the step, see `kd_local.choices.steps.FORMS`."""
        return "joined" if self.method in (JOINED, SCANNED) else "separate"

    def config(self, base: ConfigDict) -> ConfigDict:
        """A copy of the config with the keys of this row set."""
        config = base.copy_and_resolve_references()
        with config.unlocked():
            own = self.taught or self.method in PAIRS
            config.method = self.method if own else "contsup" if self.context else "end_to_end"
            config.end_to_end.remat = self.method == REMATERIALIZED
            config.local.modules = self.modules if self.context or self.method in PAIRS else 1
            # A single module has neither context nor decoder.
            config.local.context = self.context if self.context and self.modules > 1 else "R0"
            config.local.decoder = self.method in (DECODER, "hpff") and self.modules > 1
            if self.auxiliary is not None or self.context is None or self.modules == 1:
                config.local.auxiliary = self.auxiliary if self.auxiliary and self.modules > 1 else "head"
            config.local.answer = "last"
            config.local.memory_budget = None
            config.step = None
            if self.method != SCANNED:
                config.steps_per_call = None
            if self.method == LOCAL_REMATERIALIZED:
                config.local.remat = "blocks,contexts"
            if self.context is None and self.method not in PAIRS:
                config.local.boundaries = "equal"  # boundaries by name do not fit one module
            config.mesh.data = 1
            if not self.taught:
                config.optimizer.dot = None  # the other methods compute one gradient
        return config

    def identity(self, base: ConfigDict) -> str:
        """A text that is equal for rows with the same computation."""
        # A single module is one program in either form.
        form = self.form if self.modules > 1 or self.method == SCANNED else "separate"
        how = (self.method == NAIVE, form, *([SCANNED] if self.method == SCANNED else []))
        return json.dumps([self.config(base).to_dict(), *how], sort_keys=True)


def rows_of(
    modules: Sequence[int],
    contexts: Sequence[str],
    *,
    decoders: bool,
    scanned: bool,
    auxiliaries: Sequence[str] = (),
    pairs: Sequence[str] = (),
) -> list[Row]:
    """All rows, in the order of the table.

    Args:
        modules: numbers of modules.
        contexts: contexts of local learning.
        decoders: whether there are rows with decoders.
        scanned: whether there are rows of several steps per call.
        auxiliaries: auxiliary networks that have rows of their own, in addition to the config's.
        pairs: methods of pairs of modules that have rows.
    """
    local = [(CONTSUP, context) for context in contexts]
    local += [(LOCAL_REMATERIALIZED, context) for context in contexts]
    if decoders:
        local += [(DECODER, context) for context in contexts]
    kinds = [(NAIVE, "R0"), (JOINED, "R0"), *([(SCANNED, "R0")] if scanned else []), *local]
    whole = [Row(END_TO_END), Row(REMATERIALIZED)]
    others = [Row(CONTSUP, k, context, name) for name in auxiliaries for context in contexts for k in modules if k > 1]
    others += [Row(name, k) for name in pairs for k in modules if k > 1]
    return [*whole, *(Row(kind, k, context) for kind, context in kinds for k in modules), *others]


def distillation_methods(text: str | None, base: ConfigDict) -> tuple[str, ...]:
    """The methods of distillation in a flag's text, without repetitions, plain KD first.

    The default: kd and block_kd if the config names a teacher.

    Raises:
        ValueError: a method is unknown, the config names no teacher, or more than a method can have.
    """
    if text is None:
        names = [KD, BLOCK_KD] if has_teacher(base) else []
    else:
        names = [part.strip() for part in text.split(",")] if text.strip() else []
    for name in names:
        if name not in DISTILLATION:
            raise unknown("distillation method", name, DISTILLATION)
    for name in names:
        check_files(Row(name).config(base), shapes_only=True)
    return tuple(sorted(set(names), key=DISTILLATION.index))


def has_teacher(config: ConfigDict) -> bool:
    """True if the config names a teacher."""
    return (config.teacher.network or config.teacher.weights) is not None


def names_of_teachers(base: ConfigDict) -> str:
    """The names of the teachers, joined by hyphens."""
    places = base.teacher.network or base.teacher.weights
    return "-".join(Path(place.strip()).stem for place in places.split(","))


def in_order_of_effort(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order in which they are measured.

    End to end comes first because the others are compared with it, then distillation. Local learning follows, with the
    smallest pieces first and the jointly compiled rows last.
    """

    def effort(row: Row) -> tuple[int, int]:
        if row.method in PAIRS:
            return 2, -row.modules
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
    base.local.boundaries, base.local.auxiliary = config.local.boundaries, config.local.auxiliary
    base.optimizer.dot = config.optimizer.dot
    base.seed = 0
    base.steps = None
    return base
