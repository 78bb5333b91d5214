"""The memory table."""
