"""The sweep program: trains all rows of a config file."""
