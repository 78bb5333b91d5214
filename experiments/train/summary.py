"""The contents of summary.json: settings, results and costs of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.folders import workdirs
from experiments.from_config.experiment import Experiment, count_parameters
from kd_local.contract import State, trained_programs
from kd_local.costs import multiply_adds
from kd_local.files import DamagedFileError, read_json
from kd_local.local import ContSup, EndToEnd
from kd_local.memory import CompilationRecords, footprint, target
from kd_local.parallel import DATA, SEPARATE
from kd_local.training.loop import Result
from kd_local.training.records import EpochRecord, Scores, SplitScores


def summarise(
    experiment: Experiment,
    config: ConfigDict,
    state: State,
    records: Sequence[EpochRecord],
    compared: Mapping[str, float],
    costs: Mapping[str, int | float | None],
) -> dict[str, Any]:
    """The summary of a run that has ended.

    Args:
        state: the method's state after the last step.
        records: records of all epochs, including those of earlier starts. The last record is of the state. Times are
            the sums over the records that have them.
        compared: the comparison with the teachers, if there are any.
        costs: those of a step, see `costs_of_step`.
    """
    method, last = experiment.method, records[-1]
    seconds = sum(record.seconds for record in records)
    images = jax.ShapeDtypeStruct((1, *experiment.shape), jnp.float32)
    return {
        "method": config.method,
        "network": config.network.name,
        "dataset": config.data.name,
        "teachers": experiment.teachers,
        "modules": experiment.modules,
        "context": experiment.context,
        "loss": experiment.loss,
        "decoder": config.method in ("contsup", "hpff") and config.local.decoder,
        "boundaries": experiment.boundaries,
        "answer": config.local.answer if experiment.loss is not None else "last",
        "seed": config.seed,
        "epochs": int(last.epoch) if last.epoch == int(last.epoch) else last.epoch,
        "steps": last.step,
        **named_scores(last.splits),
        "images": sum(record.images for record in records),
        "train_seconds": round(seconds, 3),
        "images_per_second": round(sum(record.images for record in records) / seconds, 1) if seconds else None,
        "data_wait_seconds": round(sum(record.data_wait_seconds for record in records), 3),
        "parameters_trained": count_parameters([state[name]["params"] for name in trained_programs(method)]),
        "parameters_deployed": count_parameters(method.deployed(state)),
        "multiply_adds": multiply_adds(method.logits, state, images),
        **costs,
        **compared,
        "exits": _exits(experiment, state, images, last.test.exits),
        "jax": jax.__version__,
        "device": f"{experiment.mesh.size} x {jax.devices()[0].device_kind}",
    }


def costs_of_step(
    experiment: Experiment, batch_size: int, result: Result, workdir: Path
) -> dict[str, int | float | None]:
    """The costs of a compiled step.

    They are its peak memory in bytes of one device, and its ratio to end-to-end training of the network; its
    multiply-adds for one image, gradients included; its executables; and the seconds of compilation in the start that
    trained last, None if they are unknown.

    Both have the images that the devices hold. The end-to-end step is compiled once, and its record is saved in the
    folder. With several processes there is no ratio.
    """
    assert result.peak_bytes is not None
    costs: dict[str, int | float | None] = {
        "peak_bytes": result.peak_bytes,
        "training_multiply_adds": result.multiply_adds // batch_size,
        "executables": result.executables,
        "compile_seconds": _known_seconds(workdir) if not result.records else round(result.compile_seconds, 3),
    }
    if jax.process_count() == 1:
        whole = footprint(
            EndToEnd(experiment.network, experiment.optimizer),
            experiment.shape,
            batch_size,
            target(devices=experiment.mesh.shape[DATA]),
            options=replace(experiment.options, form=SEPARATE, steps_per_call=1, placement=None),
            records=CompilationRecords(workdir / "compilations.jsonl"),
        )
        costs["peak_of_end_to_end"] = round(result.peak_bytes / (whole.peak_bytes + result.resident_bytes), 4)
    return costs


def _known_seconds(workdir: Path) -> float | None:
    """The seconds of compilation in the summary of a run that this start did not train; None without a summary."""
    try:
        summary = read_json(workdir / workdirs.SUMMARY, {"compile_seconds": float}, way_out="train again")
    except (OSError, DamagedFileError):
        return None
    return float(summary["compile_seconds"])


def named_scores(splits: Mapping[str, SplitScores]) -> dict[str, float]:
    """The scores of the deployed network, by names such as `test_accuracy`."""
    return {
        f"{split}_{metric}": value
        for split, scores in splits.items()
        for metric, value in (("loss", scores.loss), ("accuracy", scores.accuracy))
    }


def _exits(
    experiment: Experiment, state: State, images: jax.ShapeDtypeStruct, exits: Mapping[str, Scores]
) -> dict[str, dict[str, float]]:
    """The accuracy of each exit. A local head also has its multiply-adds, and their share of the whole network's."""
    method = experiment.method
    found: dict[str, dict[str, float]] = {name: {"test_accuracy": scores.accuracy} for name, scores in exits.items()}
    if exits and isinstance(method, ContSup):
        whole = multiply_adds(replace(method, answer="last").logits, state, images)
        for name, values in found.items():
            cost = multiply_adds(replace(method, answer=name).logits, state, images)
            values.update(multiply_adds=cost, share=round(cost / whole, 4))
    return found
