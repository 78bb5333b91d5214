"""Messages between processes through JAX's coordination service, which process 0 runs.

They do not use the devices, so any thread may send them while the devices compute. Each `Barrier` and `Broadcast` has
keys of its own in the service, numbered by name. The numbers are global because the service is: its keys are written
once in the life of a run.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from kd_local.parallel.hosts import HostsError, LossError, coordination, is_first, lost

_LOOK_SECONDS = 0.5
_numbers: Counter[str] = Counter()


class Barrier:
    """A point where all processes wait for each other, any number of times, until one gives up.

    All processes create the barriers of one name in the same order, and use each from one thread at a time. A single
    process never waits.
    """

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1
        self._round = 0

    def wait(self, text: str = "", *, seconds: int) -> list[str]:
        """Sends a text and waits for those of all processes; returns them in the order of the processes.

        Raises:
            HostsError: one of them gave up (its reason is in the text), or did not come within `seconds`.
            LossError: the runtime reports one as lost.
        """
        count, index = jax.process_count(), jax.process_index()
        if count == 1:
            return [text]
        client = coordination()
        key, deadline = f"{self._key}/{self._round}", time.monotonic() + seconds
        try:
            client.key_value_set(f"{key}/{index}", text)
            texts = [self._said(f"{key}/{other}", other, deadline, seconds) for other in range(count)]
            if self._round:  # which all have left, since they are here
                client.key_value_delete(f"{self._key}/{self._round - 1}/{index}")
        except jax.errors.JaxRuntimeError as error:
            raise LossError(lost()) from error
        self._round += 1
        return texts

    def give_up(self, reason: object) -> None:
        """Tells the others why this process does not come; nobody can wait here any more."""
        if jax.process_count() == 1:
            return
        try:
            coordination().key_value_set(
                f"{self._key}/gave_up/{jax.process_index()}", str(reason), allow_overwrite=True
            )
        except jax.errors.JaxRuntimeError:
            return  # process 0 is lost, and with it the service

    @contextmanager
    def together(self, *, seconds: int) -> Iterator[None]:
        """Runs the block in each process. If it fails in one, the others raise what `wait` raises."""
        try:
            yield
        except Exception as error:
            self.give_up(error)
            raise
        self.wait(seconds=seconds)

    def decide(self, decision: Callable[[], Any], *, seconds: int) -> Any:
        """Returns in every process what process 0 decides (a value of JSON), or raises because it failed there."""
        if not is_first():
            return json.loads(self.wait(seconds=seconds)[0])
        try:
            text = json.dumps(decision())
        except Exception as error:
            self.give_up(error)
            raise
        return json.loads(self.wait(text, seconds=seconds)[0])

    def _said(self, key: str, other: int, deadline: float, seconds: int) -> str:
        client = coordination()
        while True:
            try:
                return str(client.blocking_key_value_get(key, int(_LOOK_SECONDS * 1000)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            for place, reason in client.key_value_dir_get(f"{self._key}/gave_up/"):
                raise HostsError(f"process {place.rsplit('/', 1)[1]}: {reason}")
            if time.monotonic() > deadline:
                raise HostsError(f"process {other} did not come within {seconds} s: see what it does")


class Broadcast:
    """Short texts under keys, written once and read by all processes; all create theirs in the same order."""

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1

    def write_once(self, key: str, text: str) -> None:
        """Writes the text unless another process has written one under this key.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            coordination().key_value_set(f"{self._key}/{key}", text)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise LossError(lost()) from error

    def read(self, key: str) -> str | None:
        """The text under this key; None if there is none yet.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            return str(coordination().key_value_try_get(f"{self._key}/{key}"))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LossError(lost()) from error
