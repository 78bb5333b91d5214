"""Whether each device normalises its own part of a batch: known where a step is compiled, needed where it is traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEVICES: ContextVar[int] = ContextVar("devices", default=1)


@contextmanager
def normalised_per_device(devices: int) -> Iterator[None]:
    """A context for tracing: `BatchNorm` in training mode normalises each of `devices` equal slices of a batch alone.

    If each device has one slice, no communication is needed.

    The number of devices is ambient because it cannot be passed down. The step knows the number and a `BatchNorm` needs
    it. Between the two are a method's function and linen modules, whose `__call__` has no argument for it. As a field
    of `BatchNorm` it would make a network depend on the mesh. The `ContextVar` is set while one piece is traced, in one
    thread.
    """
    token = _DEVICES.set(devices)
    try:
        yield
    finally:
        _DEVICES.reset(token)


def devices_of_a_batch() -> int:
    """The number of devices of the innermost `normalised_per_device`; 1 outside of it."""
    return _DEVICES.get()
