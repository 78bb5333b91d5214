"""Objectives of distillation: one file per objective, the distances of logits, and the registry of names."""
