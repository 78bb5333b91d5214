"""The memory program: a table of the memory of training steps."""
