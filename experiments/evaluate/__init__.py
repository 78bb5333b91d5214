"""The program that evaluates trained weights."""
