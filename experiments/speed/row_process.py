"""The process of one row: python -m experiments.speed.row_process, with a request on standard input.

The process reads a request, `{"row": ..., "config": ..., "steps": ...}`, compiles the row's step twice, from the
beginning and from a cache of the first time, and prints its memory and these times. For each further line it times a
round, and prints `{"seconds": ..., "host_seconds": ...}`.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.memory.observed import tuples
from experiments.speed.rows import PYTORCH, SpeedRow


def main() -> None:
    request = json.loads(sys.stdin.readline())
    row = SpeedRow(**request["row"])
    kind: Any
    if row.framework == PYTORCH:
        jax.config.update("jax_platforms", "cpu")
        from experiments.speed.torch_step import TorchStep as kind
    else:
        from experiments.speed.jax_step import JaxStep as kind
    make = partial(kind, row, ConfigDict(tuples(request["config"])), request["steps"])
    if row.framework == PYTORCH:
        step, compiled, cached = *_timed(make), None
    else:
        step, compiled, cached = _cold_and_cached(make)
    jax.block_until_ready(step.dispatch())
    known = {"predicted_bytes": step.predicted_bytes, "multiply_adds": step.multiply_adds}
    _answer({"compile_seconds": compiled, "cached_seconds": cached, "device": step.device, **known})
    for line in sys.stdin:
        profile = json.loads(line)["profile"]
        if profile:
            jax.profiler.start_trace(profile)
        start = time.perf_counter()
        running = step.dispatch()
        dispatched = time.perf_counter() - start
        jax.block_until_ready(running)
        seconds = time.perf_counter() - start
        if profile:
            jax.profiler.stop_trace()
        _answer({"seconds": seconds, "host_seconds": dispatched, "measured_bytes": step.measured_bytes})


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    step = make()
    return step, time.perf_counter() - start


def _cold_and_cached(make: Callable[[], Any]) -> tuple[Any, float, float]:
    """`(step, seconds with nothing compiled, seconds with the compiled step in JAX's persistent cache)`."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        step, cold = _timed(make)
        del step  # its memory
        jax.clear_caches()
        step, cached = _timed(make)
        jax.config.update("jax_compilation_cache_dir", None)
    return step, cold, cached


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
