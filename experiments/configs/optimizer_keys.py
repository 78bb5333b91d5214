"""The config keys of the optimizer and of the schedule of its learning rate."""

from ml_collections.config_dict import placeholder

from experiments.configs.description import Group, Key, above
from experiments.configs.uses import DISTILLED, PIECEWISE, SGD
from kd_local.choices.optimization import OPTIMIZERS, SCHEDULES
from kd_local.choices.optimization import RANGES as OPTIMIZATION
from kd_local.ranges import Choice, Switch

OPTIMIZER: Group = {
    "name": Key("sgd", Choice("optimizer", OPTIMIZERS), "the optimizer"),
    "learning_rate": Key(0.1, OPTIMIZATION["rate"], "peak of the schedule"),
    "momentum": Key(placeholder(float), OPTIMIZATION["momentum"], "momentum; none: 0.9", (SGD,)),
    "nesterov": Key(placeholder(bool), Switch(), "Nesterov momentum; none: if there is momentum", (SGD,)),
    "dot": Key(
        placeholder(float),
        OPTIMIZATION["dot"],
        "DOT: a momentum for the gradient of the labels, lower by this number, and one for that of the teacher, higher "
        "by it; published: 0.075; none: one gradient",
        (DISTILLED, SGD),
    ),
    "weight_decay": Key(
        1e-4, OPTIMIZATION["weight_decay"], "weight decay: L2 for sgd and adam, decoupled for the others"
    ),
    "schedule": Key("contsup", Choice("schedule", SCHEDULES), "schedule of the learning rate"),
    "warmup_epochs": Key(5, OPTIMIZATION["warmup_epochs"], "epochs of linear warm-up; 0: none"),
    "warmup_rate": Key(
        placeholder(float),
        OPTIMIZATION["warmup_rate"],
        "learning rate at the start of the warm-up; none: 0.01",
        (above("optimizer.warmup_epochs", 0),),
    ),
    "schedule_steps": Key(
        placeholder(int),
        OPTIMIZATION["schedule_steps"],
        "steps over which the schedule of all epochs runs, with its warm-up, its milestones and the warm-up of "
        "objectives; none: the steps of all epochs",
    ),
    "milestones": Key(
        (), OPTIMIZATION["milestones"], "the epochs at which the rate is multiplied by `decay`", (PIECEWISE,)
    ),
    "decay": Key(
        placeholder(float), OPTIMIZATION["decay"], "factor of the rate at each milestone; none: 0.1", (PIECEWISE,)
    ),
    "accumulate": Key(
        1, OPTIMIZATION["accumulate"], "batches whose gradients are averaged for one update, within an epoch"
    ),
}
