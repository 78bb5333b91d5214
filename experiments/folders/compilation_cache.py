"""A folder of compiled steps that the processes of one program share."""

import os
from pathlib import Path


def compilation_cache(workdir: Path) -> dict[str, str]:
    """The environment variables of runs that share compiled steps. Variables that the user has set are kept."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.absolute() / ".jax-cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
