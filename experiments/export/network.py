"""The network of a run that has ended, with the records that a card shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.folders.workdirs import CONFIG, SUMMARY
from experiments.from_config.deployed_runs import has_state
from experiments.from_config.trained_run import TrainedRun, read_run
from experiments.from_config.weights import WEIGHTS, classes_in, load_weights
from kd_local.files import read_json
from kd_local.interop import code_base
from kd_local.models import create
from kd_local.networks import Network, Variables

_HINTS = {
    "method": str, "network": str, "dataset": str, "seed": int, "epochs": float, "steps": int, "test_accuracy": float,
    "parameters_deployed": int, "multiply_adds": int, "jax": str,
}  # fmt: skip
"""The values of a run's summary that a card shows."""


@dataclass(frozen=True)
class Exported:
    """A network that is written.

    Attributes:
        run: the records of its run.
        summary: the contents of the run's summary.json.
        network: the network.
        variables: its variables, as numpy arrays.
        classes: the number of classes.
        code_base: see `kd_local.interop.code_base`.
    """

    run: TrainedRun
    summary: Mapping[str, Any]
    network: Network
    variables: Variables
    classes: int
    code_base: str | None

    @property
    def name(self) -> str:
        """The name of the network."""
        return str(self.run.config.network.name)


def network_of(workdir: Path) -> Exported:
    """The network of a run.

    Raises:
        ValueError: the folder is not that of a run, its records are damaged, the run has not ended, or the method's
            deployed network is more than a network.
        OSError: a file cannot be read.
    """
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"workdir {str(workdir)!r} is not the folder of a run: give one of experiments.train")
    run = read_run(workdir)
    config = run.config
    if not (workdir / SUMMARY).is_file():
        raise ValueError(f"the run in {workdir} has not ended (no {SUMMARY}): the command of the run resumes it")
    summary = read_json(workdir / SUMMARY, _HINTS, way_out="the command of the run writes it again")
    if has_state(workdir) and not (workdir / WEIGHTS).is_file():
        raise ValueError(
            f"the run in {workdir} is of {config.method}: its deployed network is {config.network.name} with layers of "
            "the method, which no other program has; export a run of another method, or of ContSup with "
            "local.context=R0 and local.answer=last; here, --config.teacher.weights and experiments.evaluate take the "
            "folder itself"
        )
    any_classes = create(config.network.name, classes=1, shortcut=config.network.shortcut)
    variables = load_weights(any_classes, workdir)
    classes = classes_in(variables, any_classes)
    if classes is None:
        raise ValueError(f"{workdir / WEIGHTS} has no last layer: the command of the run writes it again")
    network = create(config.network.name, classes=classes, shortcut=config.network.shortcut)
    if shape := run.facts.get("images.shape"):
        network.check(variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return Exported(run, summary, network, variables, classes, code_base(network))
