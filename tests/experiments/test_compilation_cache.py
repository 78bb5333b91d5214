"""The folder in which the rows of a sweep store compiled steps."""

import os

from experiments.folders.compilation_cache import compilation_cache


def test_rows_share_compiled_steps_unless_the_user_has_set_a_cache(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    environment = compilation_cache(tmp_path)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".jax-cache")
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert environment["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    assert compilation_cache(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "/mine"
