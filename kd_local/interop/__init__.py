"""Reads and writes the weights of other frameworks."""

from kd_local.interop.contsup import from_torch, to_torch
from kd_local.interop.pairs import pairs_from_torch, pairs_to_torch
from kd_local.interop.torch_files import read_state_dict
from kd_local.interop.zoo import load_network, network_to_torch

__all__ = [
    "from_torch",
    "load_network",
    "network_to_torch",
    "pairs_from_torch",
    "pairs_to_torch",
    "read_state_dict",
    "to_torch",
]
