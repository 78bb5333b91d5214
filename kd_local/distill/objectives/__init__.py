"""Objectives of distillation, one file for each key of the config."""
