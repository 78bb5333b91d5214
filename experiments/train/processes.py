"""Checks that the processes of a run have the same config, images and teachers."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import jax
from ml_collections import ConfigDict

import kd_local
from experiments.folders.identity import VERSION, flattened
from kd_local.parallel.barriers import Barrier
from kd_local.parallel.hosts import HostsError

_OWN = ("data.data_dir", "data.workers", "distributed.", "network.weights", "teacher.weights", "teacher.cache")
"""Options that may differ between processes: paths on the host, and waiting times."""
_READ_SECONDS = 10


class DisagreementError(ValueError):
    """The processes differ. The message names the keys, and the value in each process."""


def shared_options(config: ConfigDict) -> dict[str, Any]:
    """The options that all processes must share, and the versions of the package and of JAX."""
    shared = {key: value for key, value in flattened(config).items() if not key.startswith(_OWN)}
    return {**shared, VERSION: kd_local.__version__, "jax": jax.__version__}


def agree(values: Mapping[str, Any], *, seconds: int, free: Collection[str] = ()) -> None:
    """Checks that all processes have equal values. Every process calls it.

    Args:
        values: the values of this process by key, as JSON values.
        seconds: how long to wait for the other processes.
        free: keys whose values may differ.

    Raises:
        DisagreementError: values differ; raised in all processes, with the keys that differ.
        HostsError: another process failed, is lost or did not arrive.
    """
    barrier = Barrier("identity")
    found = [json.loads(text) for text in barrier.wait(json.dumps(dict(values)), seconds=seconds)]
    keys = sorted(set().union(*found) - set(free))
    lines = []
    for key in keys:
        first: dict[str, int] = {}
        for process, one in enumerate(found):
            first.setdefault(json.dumps(one.get(key)), process)
        if len(first) > 1:
            lines.append(f"  {key}: " + ", ".join(f"{value} in process {process}" for value, process in first.items()))
    if not lines:
        return
    # Process 0 ends last, because it serves the messages.
    with suppress(HostsError):
        barrier.wait(seconds=_READ_SECONDS)
    raise DisagreementError(
        "the processes of this run differ:\n" + "\n".join(lines) + "\nstart all with the same config and files"
    )
