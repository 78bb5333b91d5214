"""Notebooks, with the program that runs them and stores their outputs."""
