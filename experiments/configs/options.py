"""Options of a config file, after its colon: `contsup/cifar10.py:k=8,context=R0`."""

from typing import Any

from kd_local.errors import unknown


def parse_options(text: str, **defaults: Any) -> dict[str, Any]:
    """The defaults, updated by the options in `text`. Each value has the type of its default.

    >>> parse_options("k=8,context=R0", k=16, context="R1E", decoder=False)
    {'k': 8, 'context': 'R0', 'decoder': False}

    Raises:
        ValueError: an option is unknown or given twice, or a value has another type.
    """
    options, seen = dict(defaults), set()
    for item in filter(None, text.split(",")):
        name, separator, value = item.partition("=")
        if name not in defaults:
            raise unknown("option", name, defaults)
        if name in seen:
            raise ValueError(f"option {name!r} is given twice: give it once")
        seen.add(name)
        kind = type(defaults[name])
        try:
            if kind in (int, float) and not value.isascii():
                raise ValueError
            options[name] = _boolean(value) if kind is bool else kind(value)
        except ValueError:
            separator = ""
        if not separator:
            raise ValueError(f"option {item!r}: expected {name}={kind.__name__}, such as {name}={defaults[name]}")
    return options


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"
