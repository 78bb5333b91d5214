"""The sweep: all rows of a config file."""
