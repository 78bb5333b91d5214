"""How all tests run: eight forced CPU devices, strict promotion, and compiled code kept between runs."""

import getpass
import os
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / f"kd_local-jax-cache-{getpass.getuser()}"

# Programs that tests start inherit these; JAX reads them when it is first imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
_DEVICES = "--xla_force_host_platform_device_count"
# Tests compile much and compute little.
_OPTIMIZATION = "--xla_backend_optimization_level"
for _flag, _value in ((_DEVICES, 8), (_OPTIMIZATION, 0)):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from kd_local.allocator import keep_freed_memory  # noqa: E402

keep_freed_memory()

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def let_go_of_executables():
    """Each executable maps memory, and a process may have only so many mappings (65530 on Linux): then it crashes."""
    yield
    jax.clear_caches()
