"""Settings of all tests: eight forced CPU devices, strict dtype promotion, and compiled code that is kept between runs.

Tests marked `long`, `system` or `exhaustive` run only on request, see CONTRIBUTING.md.
"""

import gc
import getpass
import json
import multiprocessing.util
import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

SYSTEM = Path(__file__).parent / "system"
collect_ignore_glob = ["golden/*.py"]  # programs that need packages of their own
MAPPINGS = Path("/proc/self/maps")
CACHE = Path(tempfile.gettempdir()) / f"kd_local-jax-cache-{getpass.getuser()}"

# Programs that tests start inherit these; JAX reads them when it is first imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests compile much and compute little.
_XLA = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _XLA["--xla_cpu_use_fusion_emitters"] = "false"  # which take three times as long; later ones have no other
for _flag, _value in _XLA.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from kd_local.allocator import keep_freed_memory  # noqa: E402
from tests.support.time_limit import TimeLimit  # noqa: E402

keep_freed_memory()
gc.set_threshold(50_000)  # tracing makes many long-lived objects; with the default, collections take 5 % of the time

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--limit", type=float, help="fail if a test that is not marked system or exhaustive takes longer, in s"
    )


def pytest_configure(config):
    if (limit := config.getoption("limit")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(TimeLimit(limit))


class ProcessStarted(Exception):
    """A test outside tests/system started a process."""


def _refuse(*_, **__):
    raise ProcessStarted("only tests in tests/system start processes: move this test there, or call the function")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests outside tests/system, and their fixtures, cannot start a process."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("system") is None:
            for owner, name in (
                (subprocess, "Popen"),
                (multiprocessing.util, "spawnv_passfds"),
                (os, "fork"),
                (os, "system"),
            ):
                patch.setattr(owner, name, _refuse)
        return (yield)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory):
    """The folder of a run of a ResNet-8, with the files that a student reads. Its weights are untrained."""
    from experiments.from_config.weights import save_network
    from kd_local.models import create

    folder = tmp_path_factory.mktemp("teacher")
    network = create("resnet8", classes=10)
    save_network(network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1))), folder)
    (folder / "config.json").write_text(json.dumps({"network": {"name": "resnet8", "shortcut": "projection"}}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def free_executables():
    """Frees executables: each maps memory, and a process with more mappings than allowed (65530 on Linux) crashes."""
    yield
    if not MAPPINGS.exists() or MAPPINGS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks tests by their folder, and those that `usually(...)` does not name as exhaustive."""
    unknown, typed = {}, config.getoption("jaxtyping_packages", None)
    for item in items:
        if typed and item.get_closest_marker("untyped"):
            item.add_marker(pytest.mark.skip(reason="annotations are checked first"))
        if SYSTEM in item.path.parents:
            item.add_marker(pytest.mark.system)
        if (usual := item.get_closest_marker("usually")) is None:
            continue
        name, chosen = item.callspec.id, unknown.setdefault(item.nodeid.split("[")[0], set(usual.args))
        chosen.discard(name)
        if name not in usual.args:
            item.add_marker(pytest.mark.exhaustive)
    misspelt = {test: names for test, names in unknown.items() if names}
    if misspelt and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"usually(...) names parameters that do not exist: {misspelt}")
