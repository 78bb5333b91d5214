"""The ways to compile a step, to divide it among devices, and the devices to compile it for."""

from collections.abc import Mapping
from numbers import Integral
from types import MappingProxyType

SEPARATE, JOINED = "separate", "joined"
FORMS: tuple[str, ...] = (SEPARATE, JOINED)
"""`separate`: an executable for each program; programs that compute the same function on the same shapes share one.
`joined`: one executable for the whole step, in which optimization barriers keep the order of the programs."""

BATCH_NORMS: tuple[str, ...] = ("global", "device")
"""`global`: the statistics are those of the whole batch, on all devices of a group. `device`: each device normalises
its part of the batch without communication, and the running statistics move towards the mean of the devices'
statistics. A batch that is not divided (the last one of an epoch) is always normalised as a whole."""

SHARDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"nothing": (), "optimizer": ("opt_state",), "state": ("opt_state", "params")}
)
"""The choices of `shard` by name, each with the collections of a part of the state that are divided."""

TARGETS: tuple[str, ...] = ("local", "tpu:v5e", "tpu:v6e", "tpu:v5p", "tpu:v4", "gpu:h100", "gpu:a100")
"""Devices to compile for, see `kd_local.memory.target`."""

COUNTED: tuple[str, ...] = tuple(name for name in TARGETS if not name.startswith("gpu:"))
"""Those that run steps, or whose compiler counts operations and memory traffic. The compiler of GPUs does not."""


def check_steps_per_call(form: str, steps_per_call: int) -> None:
    """Checks that a step of this form can run several times per call.

    Raises:
        ValueError: it cannot, or the number is out of range.
    """
    if not isinstance(steps_per_call, Integral) or steps_per_call < 1:
        raise ValueError(f"steps_per_call is {steps_per_call}: use a whole number from 1")
    if steps_per_call > 1 and form != JOINED:
        raise ValueError(
            f"steps_per_call is {steps_per_call} and the form of the step is {form!r}: several steps per call need the "
            f"form {JOINED!r}"
        )


def check_batch_size(examples: int, batch_size: int) -> None:
    """Checks that a batch has at least one example, and no more than there are.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(batch_size, Integral) or not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size {batch_size} for {examples} examples: use 1 to {examples}")


def check_divides(batch_size: int, devices: int) -> None:
    """Checks that a batch can be divided among devices.

    Raises:
        ValueError: it cannot.
    """
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {devices} devices: use a multiple of {devices}, "
            f"such as {-(-batch_size // devices) * devices}"
        )
