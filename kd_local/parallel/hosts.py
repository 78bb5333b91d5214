"""Several processes, on one host or on many, that train as one; the one file that knows `jax.distributed`.

Each process starts the same program, `start` joins them, and `jax.devices()` then names the devices of all. What they
agree on goes through JAX's coordination service, which process 0 runs, and not through the devices: it may be used from
any thread, whatever the devices compute meanwhile.

Where a process is lost, killed or cut off, the others cannot go on. They learn of it in one of two ways: by an
exception of a computation or of a `Meeting`, which `is_loss` recognises, or by the runtime, which ends them itself: at
once if process 0 is lost, else after about `heartbeat_seconds`. It does so by SIGABRT and a C++ trace, from a thread of
its own; here the main thread is left a few seconds to end the program in its own way, and if it does not (it may wait
for the devices for ever) the process ends with the words given to `last_words` and exit status 1.
"""

import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state

GRACE_SECONDS = 5.0
"""How long the main thread has for its own end once the runtime has given up."""

_LOOK_SECONDS = 0.5
_LOSS = re.compile(r"Gloo .*(failed|timed out)|NCCL operation|coordination.?service", re.IGNORECASE)
_numbers: Counter[str] = Counter()
_words: list[Callable[[], str]] = []


class HostsError(Exception):
    """The processes could not start or agree; the text says why, and a way out."""


class LossError(HostsError):
    """Another process is lost."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    heartbeat_seconds: int,
    start_seconds: int,
) -> None:
    """Join the processes of a run; before anything else asks JAX for its devices.

    Without coordinator, processes and index JAX finds them itself: under Slurm, Open MPI, Kubernetes (as an indexed
    job) and on TPU pods. On the CPU the processes then compute together by Gloo.

    Args:
        coordinator: `HOST:PORT`, the same for all: where process 0 listens and the others reach it.
        processes: how many there are.
        index: which of them this is, from 0.
        heartbeat_seconds: a process that was not heard of for so long is lost.
        start_seconds: how long to wait for the others. Where one does not come although the coordinator is there, the
            runtime itself ends this process, some 5 seconds later and behind a C++ trace, with an error that says so
            and exit status 1.

    Raises:
        ValueError: some of the three are missing, none is possible, or no cluster was found.
        HostsError: the coordinator cannot be reached, or its port is taken.
    """
    for name, seconds in (("heartbeat_seconds", heartbeat_seconds), ("start_seconds", start_seconds)):
        if seconds < 1:
            raise ValueError(f"{name} is {seconds}: use 1 or more")
    deadline = time.monotonic() + start_seconds
    if (coordinator, processes, index) == (None, None, None):
        where = "of this cluster"
    else:
        address = _checked(coordinator, processes, index)
        where = f"at {coordinator}"
        if index == 0:
            _check_port(address[1])
        else:
            _wait_for(address, deadline)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    last_words(lambda: f"not all processes came together {where} within {start_seconds} s: start all of them")
    _libc.signal(signal.SIGABRT, _aborted)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            index,
            initialization_timeout=max(round(deadline - time.monotonic()), 1),
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        if coordinator is not None:
            raise
        raise ValueError(
            "no cluster was found (Slurm, Open MPI, Kubernetes, a TPU pod): give coordinator (HOST:PORT), processes "
            "and index"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise HostsError(f"the processes {where} could not be joined: {error}") from error
    last_words(lost)


def is_first() -> bool:
    """Whether this is process 0, which writes what there is one of; true where there is only one process."""
    return jax.process_index() == 0


def last_words(text: Callable[[], str]) -> None:
    """What to say on standard error if the runtime ends this process, such as `lost()` and what to do now."""
    _words[:] = [text]


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, came of the loss of another process.

    On CPUs with one device a process a computation raises `ValueError` or `jax.errors.JaxRuntimeError` at once
    ("UNKNOWN: Gloo all-reduce failed: ... Connection closed by peer"), when it is dispatched or its result is read.
    With several devices it may wait on: the runtime then ends the process.
    """
    while error is not None:
        if isinstance(error, LossError):
            return True
        if isinstance(error, ValueError | RuntimeError) and _LOSS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def lost() -> str:
    """Which process is lost, as well as this one can tell: `process 0 (HOST:PORT) was lost`."""
    coordinator, index = global_state.coordinator_address, global_state.process_id
    if index and coordinator is not None:
        for pause in (0.0, 0.2):  # A process that was killed a moment ago may listen yet.
            time.sleep(pause)
            if not _reached(_split(coordinator), seconds=2.0):
                return f"process 0 ({coordinator}) was lost"
    if global_state.num_processes == 2:
        return f"process {1 - index} was lost"
    return "another process was lost"


def leave(status: int) -> NoReturn:
    """End this process at once, without waiting for the others as a normal end does: after an error.

    The others then see it as lost. Nothing is cleaned up but standard output and error, which are flushed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Meeting:
    """Where all processes wait for each other, again and again, until one gives up; from any one thread at a time.

    All processes make their meetings of one name in the same order. With one process nothing is ever waited for.
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
        client = _client()
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
        """Tell the others why this process does not come; the meeting is over for all."""
        if jax.process_count() == 1:
            return
        try:
            _client().key_value_set(f"{self._key}/gave_up/{jax.process_index()}", str(reason), allow_overwrite=True)
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
        client = _client()
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


class Board:
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
            _client().key_value_set(f"{self._key}/{key}", text)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise LossError(lost()) from error

    def read(self, key: str) -> str | None:
        """What stands there; None where nobody has written yet.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            return str(_client().key_value_try_get(f"{self._key}/{key}"))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LossError(lost()) from error


def _client() -> Any:
    """Of the coordination service, which JAX itself names nowhere else."""
    return global_state.client


def _checked(coordinator: str | None, processes: int | None, index: int | None) -> tuple[str, int]:
    """The coordinator's host and port."""
    if coordinator is None or processes is None or index is None:
        given = {"coordinator": coordinator, "processes": processes, "index": index}
        raise ValueError(
            f"{', '.join(f'{name} is {value!r}' for name, value in given.items())}: give all three, or none where the "
            "cluster tells them"
        )
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", coordinator)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"coordinator is {coordinator!r}: use HOST:PORT, such as node0:1234 or [::1]:1234")
    if processes < 1:
        raise ValueError(f"processes is {processes}: use 1 or more")
    if not 0 <= index < processes:
        raise ValueError(f"index is {index} of {processes} processes: use 0 to {processes - 1}")
    return _split(coordinator)


def _split(coordinator: str) -> tuple[str, int]:
    host, port = coordinator.rsplit(":", 1)
    return host.strip("[]"), int(port)


def _check_port(port: int) -> None:
    """Ahead of the runtime, which may crash on a port that is taken."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise HostsError(
            f"process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): use another one"
        ) from error


def _wait_for(address: tuple[str, int], deadline: float) -> None:
    """Ahead of the runtime, which ends the process where nobody answers."""
    started = time.monotonic()
    while not _reached(address, seconds=max(deadline - time.monotonic(), 0.1)):
        if time.monotonic() > deadline:
            raise HostsError(
                f"nobody listened at {address[0]}:{address[1]} for {deadline - started:.0f} s: start process 0 there, "
                "and see that this host may reach it"
            )
        time.sleep(0.2)


def _reached(address: tuple[str, int], *, seconds: float) -> bool:
    try:
        socket.create_connection(address, timeout=seconds).close()
    except OSError:
        return False
    return True


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    """In place of the end by SIGABRT, in the thread that calls for it."""
    if threading.current_thread() is not threading.main_thread():
        time.sleep(GRACE_SECONDS)
    try:
        text = _words[0]()
    except Exception as error:
        text = f"another process was lost ({error})"
    os.write(2, f"error: {text}\n".encode())
    os._exit(1)


_libc = ctypes.CDLL(None)
