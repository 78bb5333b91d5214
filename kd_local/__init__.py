"""Greedy local learning with context supply (ContSup) in JAX: networks cut into gradient-isolated modules."""

__version__ = "0.1.0"
