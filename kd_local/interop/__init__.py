"""Weights from other frameworks, and back."""

from kd_local.interop.contsup import from_torch, to_torch
from kd_local.interop.torch_files import read_state_dict

__all__ = ["from_torch", "read_state_dict", "to_torch"]
