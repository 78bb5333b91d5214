"""The loss of the labels that a config describes."""

from ml_collections import ConfigDict

from experiments.from_config.images import read_training_labels
from experiments.from_config.numbers import BALANCED, class_weights
from kd_local.local import TaskLoss, balanced_class_weights


def task_loss(config: ConfigDict, classes: int, *, shapes_only: bool = False) -> TaskLoss:
    """The cross entropy with the smoothing and the class weights of `config.loss`.

    Balanced weights are computed from the training labels; with `shapes_only` they are 1, and nothing is read.

    Raises:
        ValueError: a value that is out of range, another number of weights than classes, or a class without images.
        FileNotFoundError: the labels are needed, and the data set is missing.
    """
    text = config.loss.class_weights
    if text is None:
        weights = None
    elif text == BALANCED:
        weights = (1.0,) * classes if shapes_only else balanced_class_weights(read_training_labels(config), classes)
    else:
        weights = class_weights(text, classes)
    try:
        loss = TaskLoss(label_smoothing=config.loss.label_smoothing, class_weights=weights)
        loss.check_classes(classes)
    except ValueError as error:
        raise ValueError(f"loss.{error}") from None
    return loss
