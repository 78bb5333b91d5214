"""Measure modules over devices: python -m experiments.pipeline [--config=FILE.py] [--module=2,4] [--data=2,4]

Trains the config's method for a few steps on each mesh: one device, modules divided over groups of devices, and batches
divided over devices. The table has images per second, busy share, transfers between groups, and memory of a device.
With --target=tpu:v5e nothing is run: the speed is predicted from counts of operations and bytes. The program writes
pipeline.jsonl, and timeline.png with the work of each group. For several devices on a CPU, set
XLA_FLAGS=--xla_force_host_platform_device_count=4.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

from pathlib import Path

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, check_counted, fail, numbers, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.configs.contradictions import check_config, check_files
from experiments.folders.compilation_cache import use_compilation_cache
from kd_local.choices.steps import COUNTED
from kd_local.paths import read_folder

_IGNORED = {
    "mesh.data": "use --data",
    "mesh.module": "use --module",
    "steps": "use --steps",
    "steps_per_call": "each step is timed alone",
    "data.on_devices": "the images are random",
    "checkpoint.": "nothing is saved",
    "distributed.": "leave it out",
    "local.memory_budget": "name the modules or their number",
    "teacher.cache": "teachers run in each step",
}
"""Keys that the meshes set, or that nothing here depends on, each with the way out."""

_CONFIG = define_config()
_MODULE = flags.DEFINE_string("module", "2,4", "Numbers of groups of devices over which the modules are divided.")
_DATA = flags.DEFINE_string("data", "2,4", "Numbers of devices over which a batch is divided.")
_TARGET = flags.DEFINE_string("target", "local", f"Devices to compile for: {', '.join(COUNTED)}.")
_STEPS = flags.DEFINE_integer("steps", 20, "Number of steps of a timed round.", 1, 100_000)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timed rounds of each mesh.", 1, 10_000)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results. The default is runs/pipeline-NETWORK-TARGET.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        config = _CONFIG.value
        check_given(given_keys(), _IGNORED)
        modules = numbers("module", _MODULE.value, example="2,4", lowest=1)
        data = numbers("data", _DATA.value, example="2,4", lowest=1)
        check_counted(_TARGET.value)
        check_used(config, {"mesh.module": (1, *modules), "mesh.data": (1, *data)})
        check_config(config)
        check_files(config, shapes_only=True)
        for each in data:
            if config.batch_size % each:
                raise ValueError(
                    f"a batch of {config.batch_size} cannot be divided over {each} devices: use another --data"
                )
        default = Path(f"runs/pipeline-{config.network.name}-{_TARGET.value.replace(':', '-')}")
        workdir = default if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)

    use_compilation_cache()
    from experiments.pipeline.run import run  # imports JAX

    meshes = [(1, 1), *((each, 1) for each in modules if each > 1), *((1, each) for each in data if each > 1)]
    run(config, meshes, _TARGET.value, steps=_STEPS.value, rounds=_ROUNDS.value, workdir=workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
