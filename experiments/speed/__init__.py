"""The speed program: a table of the times of training steps."""
