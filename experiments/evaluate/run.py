"""Evaluates weights, and writes the results."""

import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.folders.folder_lock import lock_folder
from experiments.folders.workdirs import CONFIG, SUMMARY
from experiments.from_config.deployed_runs import has_state, load_state
from experiments.from_config.experiment import build, count_parameters
from experiments.from_config.images import describe_images
from experiments.from_config.trained_run import as_trained, evaluation_config, other_images, read_run, unrecorded
from experiments.from_config.trained_run import given_keys as keys_set_by_user
from experiments.from_config.weights import is_folder_of_run, load_weights
from experiments.tables import summary_table
from experiments.train.summary import named_scores
from kd_local.contract import Method
from kd_local.costs import multiply_adds
from kd_local.files import replace_text
from kd_local.local import EndToEnd
from kd_local.training import evaluate

_BATCH_SIZE = 500  # for files of weights


def run(config: ConfigDict, given: Collection[str], weights: Path, folder: Path | None) -> None:
    """Evaluates weights on the data of a config, and prints and writes the results.

    Args:
        config: the config.
        given: the keys that the command line sets.
        weights: a file of weights, an orbax checkpoint, or the folder of a run.
        folder: the folder of the results; None: the default.
    """
    try:
        trained = read_run(weights) if is_folder_of_run(weights) else None
        if trained is not None:
            config = evaluation_config(trained, config, keys_set_by_user(config, given))
        experiment = build(config)
        images = jax.ShapeDtypeStruct((1, *experiment.shape), jnp.float32)
        method: Method
        if trained is not None and has_state(trained.folder):
            same_data = trained.config.data.name == config.data.name
            method, state = load_state(trained, config.data.data_dir if same_data else None, config.network.dtype)
        else:
            variables = load_weights(experiment.network, weights)
            experiment.network.check(variables, images)
            if trained is None and config.data.mean is None and config.data.std is None:
                usual = describe_images(config).augmentation
                way_out = "--config.data.mean and --config.data.std set others"
                said = unrecorded(weights, f"that of {config.data.name}", (usual.mean, usual.std), way_out)
                print(f"note: {said}", file=sys.stderr)
            method, state = EndToEnd(experiment.network, optax.identity()), {"network": dict(variables)}
        data = experiment.read()
        if trained is not None:
            data = as_trained(trained, data)
            if note := other_images(trained, data):
                print(f"note: {note}", file=sys.stderr)
        default = Path(f"runs/evaluate-{config.network.name}-{config.data.name}")
        workdir = default if folder is None else folder
        if (workdir / CONFIG).exists():
            raise ValueError(f"workdir {str(workdir)!r} is the folder of a training run: use another --workdir")
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()

    state = jax.tree.map(jnp.asarray, state)
    start = time.perf_counter()
    # Sums are rounded by batches, so a run's results need the run's batches.
    batch_size = min(_BATCH_SIZE, len(data.test)) if trained is None else trained.config.batch_size
    results = evaluate(method, state, data, batch_size=batch_size, mesh=experiment.mesh)
    seconds = time.perf_counter() - start
    summary: dict[str, Any] = {
        "network": config.network.name,
        "dataset": config.data.name,
        "weights": str(weights),
        "dtype": config.network.dtype,
        "batch_size": batch_size,
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
