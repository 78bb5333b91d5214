"""Options of a step: how any method's step is compiled and divided among devices."""

from dataclasses import dataclass

from kd_local.errors import unknown
from kd_local.parallel.pieces import FORMS
from kd_local.parallel.sharding import SHARDED

BATCH_NORMS: tuple[str, ...] = ("global", "device")
"""`global`: the statistics are those of the whole batch, on all devices of a group. `device`: each device normalises
its part of the batch without communication, and the running statistics move towards the mean of the devices'
statistics. A batch that is not divided (the last one of an epoch) is always normalised as a whole."""


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step. They change speed and memory. Only `batch_norm` changes the results beyond rounding.

    Attributes:
        form: whether programs are compiled separately or jointly, one of `FORMS`.
        shard: the part of the state that is divided over the devices of a group, one of `SHARDED`.
        batch_norm: the images from which batch normalisation computes its statistics, one of `BATCH_NORMS`.
        placement: the group of devices of each piece, in rising order from 0; None: the groups' multiply-adds are
            balanced.

    Raises:
        ValueError: a value is unknown.
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
