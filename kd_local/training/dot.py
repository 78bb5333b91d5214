"""DOT, the distillation-oriented trainer: SGD with a momentum for the labels and another for the teacher."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kd_local.two_gradients import TwoGradients


def dot(
    schedule: optax.Schedule, *, delta: float, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD whose parameters, gradients, momentum buffers and updates are `TwoGradients`; parameters move by the sum of
    both updates.

        m_task    <- (mu - delta) m_task    + g_task + weight_decay * w
        m_teacher <- (mu + delta) m_teacher + g_teacher
        w         <- w - rate (m_task + m_teacher)

    For a parameter with only one of the two gradients, delta is 0: the momentum is mu, the mean of the two. This is so
    for connectors, and for the student's blocks after the last stage that a loss compares. A parameter has no gradient
    in a step if all elements of its gradient are 0. For a parameter that a loss does not depend on, the compiler knows
    these zeros and removes the test. With delta = 0 the updates add up to those of SGD with momentum.

    Args:
        schedule: the learning rate as a function of the number of earlier updates.
        delta: difference of the momenta from mu; published: 0.075, or 0.05 to 0.09 by data set and pair.
        momentum: mu; mu - delta and mu + delta are in [0, 1).
        nesterov: Nesterov momentum for both; the authors use none.
        weight_decay: weight decay of every parameter (L2), with the gradient of the labels.

    Reference: Zhao et al., "DOT: a distillation-oriented trainer" (ICCV 2023), and its code. There, a parameter with
    neither gradient has no weight decay.
    """

    def init(params: TwoGradients) -> TwoGradients:
        return jax.tree.map(jnp.zeros_like, params)

    def update(
        gradients: TwoGradients, buffers: TwoGradients, params: TwoGradients
    ) -> tuple[TwoGradients, TwoGradients]:
        def one(task: Array, teacher: Array, of_task: Array, of_teacher: Array, w: Array) -> tuple[Array, ...]:
            apart = jnp.where(_any(task) & _any(teacher), delta, 0.0).astype(w.dtype)
            task = task + weight_decay * w
            of_task = (momentum - apart) * of_task + task
            of_teacher = (momentum + apart) * of_teacher + teacher
            if not nesterov:
                return of_task, of_teacher, of_task, of_teacher
            return of_task, of_teacher, task + (momentum - apart) * of_task, teacher + (momentum + apart) * of_teacher

        trees = (gradients.task, gradients.teacher, buffers.task, buffers.teacher, params.task)
        found = [one(*leaves) for leaves in zip(*map(jax.tree.leaves, trees), strict=True)]
        structure = jax.tree.structure(params.task)
        of_task, of_teacher, task, teacher = (jax.tree.unflatten(structure, each) for each in zip(*found, strict=True))
        return TwoGradients(task, teacher), TwoGradients(of_task, of_teacher)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(schedule))


def _any(x: Float[Array, "..."]) -> Array:
    return (x != 0).any()
