"""The values of a config that was written as JSON."""

from typing import Any


def tuples(value: Any) -> Any:
    """Converts the lists of JSON to the tuples of a config."""
    if isinstance(value, dict):
        return {key: tuples(one) for key, one in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value
