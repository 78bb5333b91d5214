"""Builds the method that a config names. A table has a function for each name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.configs.combination import COMBINED, combination
from experiments.from_config.teachers import teachers_of
from kd_local.choices.distillation import stone_numbers
from kd_local.contract import Method
from kd_local.data import DatasetSpec
from kd_local.distill import OBJECTIVES, Combined, Distillation, Objective, TaughtContSup, TeacherRule
from kd_local.errors import unknown
from kd_local.local import PAIR_RULES, AuxiliaryRule, ContSup, CutNetwork, EndToEnd, PairRule, PairTraining, TaskLoss
from kd_local.networks import Network
from kd_local.two_gradients import Optimizer, with_one_gradient

CUT_METHODS = ("contsup", *PAIR_RULES)
"""Methods that cut the network and train each module with its own program."""


@dataclass(frozen=True)
class Ingredients:
    """The objects that methods are made of. All are built, and thereby checked, for every method.

    Attributes:
        network: the network to train.
        contsup: the method ContSup for the network.
        pair_rules: the rules for pairs of modules by the names of their methods.
        objectives: the objectives of distillation by name.
        optimizer: the optimizer of distillation; see `plain`.
        data: the description of the data set.
        fresh_teachers: True if teachers have zeros for weights.
    """

    network: Network
    contsup: ContSup
    pair_rules: Mapping[str, PairRule]
    objectives: Mapping[str, Objective]
    optimizer: Optimizer
    data: DatasetSpec
    task_loss: TaskLoss
    fresh_teachers: bool

    @property
    def plain(self) -> optax.GradientTransformation:
        """The optimizer of every program of other methods, which compute one gradient."""
        return with_one_gradient(self.optimizer)


def method_from_config(
    config: ConfigDict,
    network: Network,
    cut_network: CutNetwork,
    auxiliary: AuxiliaryRule,
    optimizer: Optimizer,
    data: DatasetSpec,
    task_loss: TaskLoss,
    *,
    fresh_teachers: bool,
) -> Method:
    """The method that `config.method` names.

    Raises:
        ValueError: the method's name is unknown, its teachers are missing or do not fit, or it cannot use a cache; or a
            hyper-parameter of any method is unknown or out of range.
        ModuleNotFoundError: a file of weights needs PyTorch, which is not installed.
    """
    plain = with_one_gradient(optimizer)
    contsup = ContSup(cut_network, plain, config.local.answer)
    if isinstance(auxiliary, TeacherRule):
        contsup = TaughtContSup(cut_network, plain, config.local.answer, rule=auxiliary)
    of = Ingredients(
        network=network,
        contsup=contsup,
        pair_rules={name: rule(**_hyper_parameters(config[name])) for name, rule in PAIR_RULES.items()},
        objectives={name: kind(**_hyper_parameters(config[name])) for name, kind in OBJECTIVES.items()},
        optimizer=optimizer,
        data=data,
        task_loss=task_loss,
        fresh_teachers=fresh_teachers,
    )
    if config.method not in METHODS:
        raise unknown("method", config.method, METHODS)
    if config.teacher.cache is not None and METHODS[config.method] is not _distillation:
        raise ValueError(
            f"teacher.cache is set, but method {config.method} cannot use cached logits of a teacher: leave it out"
        )
    if config.optimizer.dot is not None and METHODS[config.method] is not _distillation:
        raise ValueError(
            f"optimizer.dot is {config.optimizer.dot}, but method {config.method} computes one gradient, and DOT takes "
            "two, of the labels and of a teacher: leave it out, or use a method of distillation"
        )
    return METHODS[config.method](config, of)


def _contsup(config: ConfigDict, of: Ingredients) -> Method:
    of.contsup.check_maps()
    return of.contsup


def _pairs(config: ConfigDict, of: Ingredients) -> Method:
    of.network.check_maps(config.method)
    return PairTraining(of.contsup.cut_network, of.pair_rules[config.method], of.plain)


def _end_to_end(config: ConfigDict, of: Ingredients) -> Method:
    return EndToEnd(of.network, of.plain, config.end_to_end.remat, of.task_loss)


def _distillation(config: ConfigDict, of: Ingredients) -> Method:
    method = Distillation(
        of.network,
        teachers_of(config, of.data, fresh=of.fresh_teachers),
        _objective(config, of),
        of.optimizer,
        examples=of.data.train,
        cached=config.teacher.cache is not None,
        task_loss=of.task_loss,
    )
    _check_connectors(method, of.data.shape)
    return method


def _objective(config: ConfigDict, of: Ingredients) -> Objective:
    if config.method != COMBINED:
        return of.objectives[config.method]
    weights = combination(config.combined.objectives)
    return Combined(
        tuple((of.objectives[name], weight) for name, weight in weights.items()), ce_weight=config.combined.ce_weight
    )


def _check_connectors(method: Distillation, shape: tuple[int, int, int]) -> None:
    """Checks that the objective's connectors fit the networks, for example that each stage exists. Uses only shapes."""
    jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


METHODS: Mapping[str, Callable[[ConfigDict, Ingredients], Method]] = {
    "contsup": _contsup,
    **dict.fromkeys(PAIR_RULES, _pairs),
    "end_to_end": _end_to_end,
    **dict.fromkeys((*OBJECTIVES, COMBINED), _distillation),
}


_STONES = ("stones", "stages")


def _hyper_parameters(section: ConfigDict) -> dict[str, Any]:
    """The hyper-parameters of an objective. A config from JSON has lists for tuples; numbers of stones are a text."""
    numbers: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in section.to_dict().items()
    }
    return {name: stone_numbers(value) if name in _STONES else value for name, value in numbers.items()}
