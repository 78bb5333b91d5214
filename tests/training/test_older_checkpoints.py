"""Runs that earlier versions saved resume."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import Program, State
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.parallel import StepOptions
from kd_local.training import train
from kd_local.training.checkpoints import Checkpoints
from tests.support import tiny

NETWORK = tiny.network()
TEACHER = Teacher(NETWORK, tiny.variables(NETWORK, 1, (8, 8, 1)))


@dataclass(frozen=True)
class CountsSteps(Distillation):
    """Distillation as before version 0.1.0: the student's part of the state has a step count."""

    def init(self, rng, images) -> State:
        state = super().init(rng, images)
        return {**state, "student": {**state["student"], "step": jnp.zeros((), jnp.int32)}}

    def programs(self) -> tuple[Program, ...]:
        (program,) = super().programs()

        def function(part, *arguments):
            others = {name: value for name, value in part.items() if name != "step"}
            updated, written, metrics = program.function(others, *arguments)
            return {**updated, "step": part["step"] + 1}, written, metrics

        return (replace(program, function=function),)


@pytest.mark.parametrize("shard", ["nothing", "state"])
@pytest.mark.exhaustive
def test_a_distillation_run_whose_state_counts_steps(tmp_path: Path, shard: str) -> None:
    data = tiny.data(24, 4)
    arguments = (NETWORK, (TEACHER,), OBJECTIVES["dkd"](warmup_epochs=3), optax.sgd(0.1, momentum=0.9))
    method, older = Distillation(*arguments), CountsSteps(*arguments)
    options = {"batch_size": 8, "epochs": 2, "options": StepOptions(shard=shard)}
    expected = train(method, data, **options).state
    with Checkpoints(tmp_path) as checkpoints:
        train(older, data, **options, steps=4, checkpoints=checkpoints)
        resumed = train(method, data, **options, checkpoints=checkpoints).state
    assert jax.tree.structure(resumed) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
