"""Options of a step: how any method's step is compiled and divided among devices."""

from dataclasses import dataclass

from kd_local.choices.steps import BATCH_NORMS, FORMS, SHARDED, check_steps_per_call
from kd_local.errors import unknown


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step. They change speed and memory. Only `batch_norm` changes the results beyond rounding.

    Attributes:
        form: whether programs are compiled separately or jointly, one of `FORMS`.
        steps_per_call: steps of the training loop that run as one executable (`jax.lax.scan` over the joined step);
            above 1 only with `joined`. The devices then do not wait for the host between these steps.
        shard: the part of the state that is divided over the devices of a group, one of `SHARDED`.
        batch_norm: the images from which batch normalisation computes its statistics, one of `BATCH_NORMS`.
        placement: the group of devices of each piece, in rising order from 0; None: the groups' multiply-adds are
            balanced.

    Raises:
        ValueError: a value is unknown or out of range, or several steps per call of the form `separate`.
    """

    form: str = "separate"
    steps_per_call: int = 1
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
        check_steps_per_call(self.form, self.steps_per_call)
