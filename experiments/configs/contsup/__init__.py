"""The tables and figures of the ContSup paper, one file each, and its baselines."""
