"""Evaluate trained weights: python -m experiments.evaluate --weights=PATH [--config=FILE.py] [--config.KEY=VALUE ...]

PATH is a file of PyTorch weights (.npz needs no torch) or the folder of a run. For a file, the config names network and
data. A run's folder records its network, its images and their normalisation; the config may name another data set. The
program writes summary.json.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # the imports below take seconds

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.config_flag import define_config
from experiments.config_flag import given_keys as keys_of_command_line
from experiments.configs.checks import check_given
from experiments.configs.keys import objective_keys
from experiments.folders.folder_lock import lock_folder
from experiments.folders.workdirs import CONFIG, SUMMARY
from experiments.from_config.deployed_runs import has_state, load_state
from experiments.from_config.experiment import build, count_parameters
from experiments.from_config.images import describe_images
from experiments.from_config.teachers import load_weights
from experiments.from_config.trained_run import (
    as_trained,
    evaluation_config,
    given_keys,
    other_images,
    read_run,
    unrecorded,
)
from experiments.tables import summary_table
from experiments.train.summary import named_scores
from kd_local.contract import Method
from kd_local.costs import multiply_adds
from kd_local.files import replace_text
from kd_local.local import EndToEnd
from kd_local.paths import read_existing, read_folder
from kd_local.training import evaluate

_CONFIG = define_config()
_WEIGHTS = flags.DEFINE_string("weights", None, "File of PyTorch weights, or the folder of a run.")
_TRAINING = "it is for training, leave it out"
_IGNORED = {
    **dict.fromkeys(("method", "epochs", "steps", "step", "seed", "batch_size", "optimizer.", "loss."), _TRAINING),
    **dict.fromkeys(("end_to_end.", "checkpoint.", "distributed.", "teacher.", "network.weights"), _TRAINING),
    **dict.fromkeys((f"{name}." for name in objective_keys()), _TRAINING),
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
        check_given(keys_of_command_line(), _IGNORED)
        weights = read_existing(_WEIGHTS.value, "weights")
        run = read_run(weights) if weights.is_dir() else None
        if run is not None:
            config = evaluation_config(run, config, given_keys(config, keys_of_command_line()))
        experiment = build(config)
        images = jax.ShapeDtypeStruct((1, *experiment.shape), jnp.float32)
        method: Method
        if run is not None and has_state(run.folder):
            same_data = run.config.data.name == config.data.name
            method, state = load_state(run, config.data.data_dir if same_data else None, config.network.dtype)
        else:
            variables = load_weights(experiment.network, weights)
            experiment.network.check(variables, images)
            if run is None and config.data.mean is None and config.data.std is None:
                usual = describe_images(config).augmentation
                way_out = "--config.data.mean and --config.data.std set others"
                said = unrecorded(weights, f"that of {config.data.name}", (usual.mean, usual.std), way_out)
                print(f"note: {said}", file=sys.stderr)
            method, state = EndToEnd(experiment.network, optax.identity()), {"network": dict(variables)}
        data = experiment.read()
        if run is not None:
            data = as_trained(run, data)
            if note := other_images(run, data):
                print(f"note: {note}", file=sys.stderr)
        default = f"runs/evaluate-{config.network.name}-{config.data.name}"
        workdir = read_folder(default if _WORKDIR.value is None else _WORKDIR.value, "workdir")
        if (workdir / CONFIG).exists():
            raise ValueError(f"workdir {str(workdir)!r} is the folder of a training run: use another --workdir")
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()

    state = jax.tree.map(jnp.asarray, state)
    start = time.perf_counter()
    results = evaluate(method, state, data, batch_size=min(500, len(data.test)), mesh=experiment.mesh)
    seconds = time.perf_counter() - start
    summary: dict[str, Any] = {
        "network": config.network.name,
        "dataset": config.data.name,
        "weights": str(_WEIGHTS.value),
        **named_scores(results),
        "exits": {name: {"test_accuracy": scores.accuracy} for name, scores in results["test"].exits.items()},
        "parameters": count_parameters(method.deployed(state)),
        "multiply_adds": multiply_adds(method.logits, state, images),
        "seconds": round(seconds, 3),
        "jax": jax.__version__,
        "device": f"{experiment.mesh.size} x {jax.devices()[0].device_kind}",
    }
    replace_text(workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    exits = {f"{name} test_accuracy": values["test_accuracy"] for name, values in summary["exits"].items()}
    Console().print(summary_table({**{name: value for name, value in summary.items() if name != "exits"}, **exits}))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
