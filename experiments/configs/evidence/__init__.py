"""Comparisons of all methods, with all costs: local learning, distillation, and both at once."""
