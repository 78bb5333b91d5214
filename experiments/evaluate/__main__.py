"""Evaluate trained weights: python -m experiments.evaluate --weights=PATH [--config=FILE.py] [--config.KEY=VALUE ...]

PATH is a file of weights (.npz and .safetensors need no PyTorch), an orbax checkpoint, or the folder of a run. For
weights alone, the config names network and data. A run's folder records its network, its images and their
normalisation; the config may name another data set. A run is evaluated in its own precision and batch size, so on the
same devices its results are those of its summary.json.
The program writes summary.json.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given
from experiments.configs.contradictions import check_config, check_files
from experiments.configs.keys import hyper_parameter_keys
from experiments.folders.compilation_cache import use_compilation_cache
from kd_local.paths import read_existing, read_folder

_CONFIG = define_config()
_WEIGHTS = flags.DEFINE_string("weights", None, "File of PyTorch weights, orbax checkpoint, or the folder of a run.")
_TRAINING = "it is for training, leave it out"
_IGNORED = {
    **dict.fromkeys(("method", "epochs", "steps", "step", "seed", "batch_size", "optimizer.", "loss."), _TRAINING),
    **dict.fromkeys(("steps_per_call", "data.on_devices"), _TRAINING),
    **dict.fromkeys(("end_to_end.", "checkpoint.", "distributed.", "teacher.", "network.weights"), _TRAINING),
    **dict.fromkeys((f"{name}." for name in hyper_parameter_keys()), _TRAINING),
    **dict.fromkeys(("local.", "data.augment", "mesh.placement", "mesh.batch_norm", "mesh.shard"), _TRAINING),
}
"""Keys that nothing here depends on."""
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the result. The default is runs/evaluate-NETWORK-DATA.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    with config.unlocked():
        # For a file of weights; a run has its method in its config.
        config.method, config.network.weights = "end_to_end", None
    try:
        if _WEIGHTS.value is None:
            raise ValueError("--weights is not set: give a file of weights, or the folder of a run")
        check_given(given_keys(), _IGNORED)
        weights = read_existing(_WEIGHTS.value, "weights")
        check_config(config)
        if weights.is_file():
            check_files(config)
        folder = None if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)

    use_compilation_cache()
    from experiments.evaluate.run import run  # imports JAX

    run(config, given_keys(), weights, folder)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
