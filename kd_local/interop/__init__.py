"""Reads and writes the weights of other frameworks, and files of weights."""

from kd_local.interop.contsup import from_torch, to_torch
from kd_local.interop.orbax_files import read_orbax, write_orbax
from kd_local.interop.pairs import pairs_from_torch, pairs_to_torch
from kd_local.interop.safetensors import write_safetensors
from kd_local.interop.torch_files import read_state_dict
from kd_local.interop.torch_writer import write_state_dict
from kd_local.interop.zoo import code_base, load_network, network_to_torch

__all__ = [
    "code_base",
    "from_torch",
    "load_network",
    "network_to_torch",
    "pairs_from_torch",
    "pairs_to_torch",
    "read_orbax",
    "read_state_dict",
    "to_torch",
    "write_orbax",
    "write_safetensors",
    "write_state_dict",
]
