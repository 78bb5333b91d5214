"""Weights that are a function of their names, as in mdistiller's golden files."""

import pytest

from tests.support.weights import weights_by_name


@pytest.fixture
def weights():
    """The function from names and shapes in PyTorch to weights."""
    return weights_by_name
