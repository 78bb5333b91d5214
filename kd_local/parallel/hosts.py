"""Connects several processes, on one host or on many, for one training run. No other file uses `jax.distributed`.

Each process starts the same program and calls `start`. Then `jax.devices()` lists the devices of all processes. The
processes communicate by a `Barrier` or a `Broadcast`, see `barriers`.

If a process is lost (killed or cut off), the others cannot continue. They notice it in one of two ways:

- A computation or a `Barrier` raises an exception, which `is_loss` recognises.
- The runtime aborts the process: at once if process 0 is lost, else after about `heartbeat_seconds`. The process then
  ends with the message of `on_abort` and exit status 1, see `aborts`.
"""

import os
import re
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # JAX itself names neither coordinator nor client elsewhere

from kd_local.parallel.aborts import ask_before_blaming, on_abort, watch_aborts

_LOSS = re.compile(r"Gloo .*(failed|timed out)|NCCL operation|coordination.?service", re.IGNORECASE)


class HostsError(Exception):
    """The processes could not start or agree. The message has the reason and a way out."""


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
    """Connects the processes of a run. Call it before anything else asks JAX for its devices.

    Without coordinator, processes and index, JAX finds these values: under Slurm, Open MPI, Kubernetes (as an indexed
    job) and on TPU pods. CPU processes communicate through Gloo.

    Args:
        coordinator: `HOST:PORT`, where process 0 listens; the same in all processes.
        processes: number of processes.
        index: index of this process, from 0.
        heartbeat_seconds: a process that is silent for this long counts as lost.
        start_seconds: how long to wait for the others. If one is missing while the coordinator runs, the runtime aborts
            this process about 5 seconds later, with a C++ trace, an error message and exit status 1.

    Raises:
        ValueError: only some of coordinator, processes and index are given, one is out of range, or none is given and
            no cluster was found.
        HostsError: the coordinator cannot be reached, or its port is in use.
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
    on_abort(lambda: f"not all processes connected {where} within {start_seconds} s: start all of them")
    watch_aborts()
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
        raise HostsError(f"the processes {where} could not be connected: {error}") from error
    on_abort(lost)
    ask_before_blaming(_ask_coordination)


def is_first() -> bool:
    """True in process 0, which writes the files that all processes share."""
    return jax.process_index() == 0


def is_loss(error: BaseException | None) -> bool:
    """True if the loss of another process caused the error, directly or not.

    On CPUs with one device per process, a computation raises `ValueError` or `jax.errors.JaxRuntimeError` at once
    ("UNKNOWN: Gloo all-reduce failed: ... Connection closed by peer"), when it is dispatched or its result is read.
    With several devices per process the computation may keep waiting; the runtime then ends the process.
    """
    while error is not None:
        if isinstance(error, LossError):
            return True
        if isinstance(error, ValueError | RuntimeError) and _LOSS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def lost() -> str:
    """A text that names the lost process if it is known: `process 0 (HOST:PORT) was lost`."""
    coordinator, index = global_state.coordinator_address, global_state.process_id
    if index and coordinator is not None:
        for pause in (0.0, 0.2):  # The port of a process that has just been killed may still be open.
            time.sleep(pause)
            if not _reached(_split(coordinator), seconds=2.0):
                return f"process 0 ({coordinator}) was lost"
    if global_state.num_processes == 2:
        return f"process {1 - index} was lost"
    return "another process was lost"


def leave(status: int) -> NoReturn:
    """Ends this process at once after an error. A normal end would wait for the other processes.

    The others then see this process as lost. Standard output and error are flushed; nothing else is cleaned up.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def coordination() -> Any:
    """The client of JAX's coordination service, which process 0 runs."""
    return global_state.client


def _ask_coordination() -> None:
    with suppress(jax.errors.JaxRuntimeError):
        coordination().key_value_try_get("kd_local/no such key")


def _checked(coordinator: str | None, processes: int | None, index: int | None) -> tuple[str, int]:
    """The coordinator's host and port."""
    if coordinator is None or processes is None or index is None:
        given = {"coordinator": coordinator, "processes": processes, "index": index}
        raise ValueError(
            f"{', '.join(f'{name} is {value!r}' for name, value in given.items())}: give all three, or none under a "
            "cluster manager"
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
    """Checks the port before the runtime does, which may crash if the port is in use."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise HostsError(
            f"process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): use another port"
        ) from error


def _wait_for(address: tuple[str, int], deadline: float) -> None:
    """Waits until process 0 listens. The runtime would end this process if it did not."""
    started = time.monotonic()
    while not _reached(address, seconds=max(deadline - time.monotonic(), 0.1)):
        if time.monotonic() > deadline:
            raise HostsError(
                f"nothing listened at {address[0]}:{address[1]} for {deadline - started:.0f} s: start process 0 there, "
                "and check that this host can reach it"
            )
        time.sleep(0.2)


def _reached(address: tuple[str, int], *, seconds: float) -> bool:
    try:
        socket.create_connection(address, timeout=seconds).close()
    except OSError:
        return False
    return True
