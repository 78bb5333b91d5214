"""Options of a step: how any method's step is compiled and divided among devices."""

from dataclasses import dataclass

from kd_local.errors import unknown
from kd_local.parallel.pieces import FORMS
from kd_local.parallel.sharding import SHARDED

BATCH_NORMS: tuple[str, ...] = ("global", "device")
"""`global`: statistics over the batch on all devices of a group. `device`: each device normalises its own part of the
batch without communication, and the running statistics move to the mean of the devices' statistics. A batch that is not
divided (the last one of an epoch) is always normalised as a whole."""


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step. They change its speed and memory; only `batch_norm` changes its results, beyond
    rounding.

    Attributes:
        form: one of `FORMS`.
        shard: which of the state is divided among the devices of a group, one of `SHARDED`.
        batch_norm: over which images batch normalisation takes its statistics, one of `BATCH_NORMS`.
        placement: the group of devices of each piece, rising from 0; None to balance their multiply-adds.

    Raises:
        ValueError: an unknown value.
    """

    form: str = "separate"
    shard: str = "nothing"
    batch_norm: str = "global"
    placement: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("form of the step", self.form, FORMS),
            ("part of the state to shard", self.shard, SHARDED),
            ("batch normalisation", self.batch_norm, BATCH_NORMS),
        ):
            if value not in known:
                raise unknown(what, value, known)
