"""How the steps of a run are grouped into calls of the devices: several steps of full batches, or a single step."""

from collections.abc import Iterator
from itertools import islice

from jax.sharding import Mesh

from kd_local.parallel import JOINED, StepOptions, groups
from kd_local.training.image_source import HostBatch
from kd_local.training.records import TrainingPlan

MOST_STEPS = 50
"""Steps of a call by default, at most. Of 50 steps the dispatch of one is 2 %."""
_FEWEST_STEPS = 25


def default_options(plan: TrainingPlan, full_steps: int, mesh: Mesh, *, on_devices: bool) -> StepOptions:
    """The options of a step by default: several steps per call, of the form `joined`, on accelerators that hold the
    images; otherwise the form `separate`.

    - On a CPU a convolution inside a loop is slow, and the dispatch of a step is not the limit.
    - Several groups of devices each need a dispatch per batch.
    - With images from the host, a call would copy the batches of all its steps before it begins.
    """
    if _on_cpu(mesh) or len(groups(mesh)) > 1 or not on_devices:
        return StepOptions()
    steps = steps_that_divide(min(full_steps, plan.last_step))
    return StepOptions(form=JOINED, steps_per_call=steps) if steps > 1 else StepOptions()


def steps_that_divide(full_steps: int) -> int:
    """Steps of a call by default: 25 to 50, such that calls of this size divide an epoch, or else 50.

    An epoch with fewer steps is one call.

    >>> steps_that_divide(390)
    39

    Args:
        full_steps: steps of an epoch with a full batch.
    """
    dividing = [steps for steps in range(_FEWEST_STEPS, MOST_STEPS + 1) if full_steps % steps == 0]
    return min(full_steps, max(dividing, default=MOST_STEPS))


def check_calls(plan: TrainingPlan, full_steps: int, steps_per_call: int) -> None:
    """Checks that calls of several steps occur in a run.

    Raises:
        ValueError: an epoch, or the run, has fewer full batches than a call.
    """
    most = min(full_steps, plan.last_step)
    if steps_per_call > most:
        raise ValueError(
            f"steps_per_call is {steps_per_call}, but an epoch of this run has {most} steps with a full batch: use "
            f"{most} or fewer"
        )


def steps_of_call(plan: TrainingPlan, step: int, full_steps: int, steps_per_call: int) -> int:
    """The number of steps of the call that begins after `step` steps: `steps_per_call` or 1.

    Calls of several steps begin at multiples of `steps_per_call` within an epoch. So the grouping depends only on the
    step, and a resumed run computes the same calls. The remaining steps of an epoch are single.

    Args:
        plan: the plan of the run.
        step: the steps done.
        full_steps: steps of an epoch whose batch has `plan.batch_size` images.
        steps_per_call: the steps of a call.
    """
    position = step % plan.steps_per_epoch
    if position % steps_per_call or position + steps_per_call > full_steps or step + steps_per_call > plan.last_step:
        return 1
    return steps_per_call


def call_sizes(plan: TrainingPlan, full_steps: int, steps_per_call: int) -> Iterator[int]:
    """The numbers of steps of the calls, from the plan's first step to its last; see `steps_of_call`."""
    step = plan.first_step
    while step < plan.last_step:
        size = steps_of_call(plan, step, full_steps, steps_per_call)
        yield size
        step += size


def grouped(batches: Iterator[HostBatch], sizes: Iterator[int]) -> Iterator[list[HostBatch]]:
    """Yields the batches of each call."""
    return (list(islice(batches, size)) for size in sizes)


def takes_single_steps(plan: TrainingPlan, full_steps: int, steps_per_call: int) -> bool:
    """Whether a run from the beginning takes a full batch in a single step."""
    epochs, remaining = divmod(plan.last_step, plan.steps_per_epoch)
    of_epochs = [full_steps] * min(epochs, 1) + [min(remaining, full_steps)]
    return steps_per_call == 1 or any(steps % steps_per_call for steps in of_epochs)


def _on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")
