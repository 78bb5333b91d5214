"""Published test errors of local learning, by the number of modules.

Reference: Wang et al., "Revisiting locally supervised learning: an alternative to end-to-end training" (InfoPro, ICLR
2021), table 2: percent, 160 epochs, mean of 5 runs. ContSup's own figures are left out, because they were not checked.
"""

from collections.abc import Mapping

Errors = Mapping[str, Mapping[int, float]]
"""Errors by method and number of modules; a network that is not cut has 1."""

WHOLE_NETWORK = 1
"""The number of modules of a network that is not cut."""
END_TO_END = "end to end"
_ERRORS: dict[tuple[str, str], Errors] = {
    ("resnet32", "cifar10"): {
        END_TO_END: {WHOLE_NETWORK: 7.37},
        "greedy SL": {2: 10.30, 4: 16.07, 8: 21.19, 16: 24.59},
        "DGL": {2: 8.69, 4: 11.48, 8: 14.17, 16: 16.21},
        "InfoPro softmax": {2: 8.13, 4: 8.64, 8: 11.40, 16: 14.23},
        "InfoPro contrast": {2: 7.76, 4: 8.58, 8: 11.13, 16: 12.75},
    },
    ("resnet110", "cifar10"): {
        END_TO_END: {WHOLE_NETWORK: 6.50},
        "DGL": {2: 7.70, 4: 10.50, 8: 12.46, 16: 13.80},
        "InfoPro contrast": {2: 6.42, 4: 7.30, 8: 8.93, 16: 9.90},
    },
    ("resnet110", "svhn_cropped"): {
        END_TO_END: {WHOLE_NETWORK: 3.07},
        "DGL": {2: 3.61, 4: 4.97, 8: 5.35, 16: 5.55},
        "InfoPro contrast": {2: 3.15, 4: 3.28, 8: 3.62, 16: 3.91},
    },
    ("resnet110", "stl10"): {
        END_TO_END: {WHOLE_NETWORK: 22.27},
        "DGL": {2: 24.96, 4: 26.77, 8: 27.33, 16: 27.73},
        "InfoPro contrast": {2: 20.99, 4: 22.73, 8: 25.15, 16: 26.27},
    },
}


def published_errors(network: str, data: str) -> Errors:
    """Published test errors in percent for a network and data set; empty if none are known."""
    return _ERRORS.get((network, data), {})
