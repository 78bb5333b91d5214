"""Train a network: python -m experiments.train [--config=FILE.py[:OPTIONS]] [--config.KEY=VALUE ...] [--workdir=DIR]

The config describes the run; docs/configuration.md explains every KEY. The same command resumes a run that was stopped.
The program writes metrics.jsonl, steps.jsonl, tensorboard/, summary.json, curves.png, checkpoints/ and config.json to
the folder of the run.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_used
from experiments.configs.contradictions import check_config, check_files, check_warmups
from experiments.folders.compilation_cache import use_compilation_cache
from kd_local.paths import read_folder

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The default is runs/NAME; the config gives NAME.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Connect to the run's other processes, on this host or on others."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0. The cluster manager gives the default."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes. The cluster manager gives a default.")
_INDEX = flags.DEFINE_integer("index", None, "Index of this process, from 0. The cluster manager gives a default.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        config = _CONFIG.value
        check_used(config, {"--distributed": (_DISTRIBUTED.value,)})
        folder = None if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
        for flag in (_COORDINATOR, _PROCESSES, _INDEX):
            if flag.value is not None and not _DISTRIBUTED.value:
                raise ValueError(
                    f"--{flag.name} is set without --distributed: add --distributed, or leave out --{flag.name}"
                )
        check_config(config)
        check_warmups(config, given_keys())
        if not _DISTRIBUTED.value:  # a path that this process lacks is reported to the others, once they are connected
            check_files(config)
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)

    use_compilation_cache()
    from experiments.train.run import Processes, run  # imports JAX

    group = Processes(_COORDINATOR.value, _PROCESSES.value, _INDEX.value) if _DISTRIBUTED.value else None
    run(config, folder, group)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
