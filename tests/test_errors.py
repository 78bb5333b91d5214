"""Error messages for unknown values."""

import pytest

from kd_local.errors import unknown

DATASETS = ("cifar10", "cifar100", "digits")


@pytest.mark.parametrize(
    ("value", "choices", "text"),
    [
        (
            "cifr10",
            DATASETS,
            "unknown dataset 'cifr10': use cifar10, cifar100 or digits (nearest: cifar10)",
        ),
        (
            "Digit",
            DATASETS,
            "unknown dataset 'Digit': use cifar10, cifar100 or digits (nearest: digits)",
        ),
        ("mnist", ("R0", "E"), "unknown dataset 'mnist': use R0 or E"),
        (7, ("R1E",), "unknown dataset 7: use R1E"),
        ("r1e", ("R0", "R1E"), "unknown dataset 'r1e': use R0 or R1E (nearest: R1E)"),
    ],
)
def test_the_message_names_value_choices_and_the_nearest_choice(
    value: object, choices: tuple[str, ...], text: str
) -> None:
    error = unknown("dataset", value, iter(choices))
    assert isinstance(error, ValueError) and str(error) == text


def test_of_many_choices_the_nearest_are_listed() -> None:
    choices = [f"resnet{depth}" for depth in range(8, 40)]
    text = str(unknown("network", "ResNet-18", choices))
    assert text.startswith("unknown network 'ResNet-18': the nearest of 32 are resnet18, ") and len(text) < 120
