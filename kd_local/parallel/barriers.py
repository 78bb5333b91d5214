"""What several processes tell each other: through JAX's coordination service, which process 0 runs, and not through the
devices. So it may be used from any thread, whatever the devices compute meanwhile."""

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
    """Where all processes wait for each other, again and again, until one gives up; from any one thread at a time.

    All processes make their barriers of one name in the same order. With one process nothing is ever waited for.
    """

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1
        self._round = 0

    def wait(self, text: str = "", *, seconds: int) -> list[str]:
        """What each process says, in their order, once all have said it.

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
        """Tell the others why this process does not come; the barrier is over for all."""
        if jax.process_count() == 1:
            return
        try:
            coordination().key_value_set(
                f"{self._key}/gave_up/{jax.process_index()}", str(reason), allow_overwrite=True
            )
        except jax.errors.JaxRuntimeError:
            return  # Process 0 is lost: there is nobody to be told.

    @contextmanager
    def together(self, *, seconds: int) -> Iterator[None]:
        """Each process does what is in here; if it fails in one of them, it fails in all, with what `wait` raises."""
        try:
            yield
        except Exception as error:
            self.give_up(error)
            raise
        self.wait(seconds=seconds)

    def decide(self, decision: Callable[[], Any], *, seconds: int) -> Any:
        """What process 0 decides (of numbers, texts, lists, dicts by text, None), told to all; so is its failure."""
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
    """Short texts under keys that all processes can read, and that are written once; made by all in the same order."""

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1

    def write_once(self, key: str, text: str) -> None:
        """Whoever comes first has written it.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            coordination().key_value_set(f"{self._key}/{key}", text)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise LossError(lost()) from error

    def read(self, key: str) -> str | None:
        """What stands there; None where nobody has written yet.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            return str(coordination().key_value_try_get(f"{self._key}/{key}"))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LossError(lost()) from error
