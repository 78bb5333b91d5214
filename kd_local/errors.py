"""The text of errors about a value that is none of a known few."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a value that is not among the choices, to be raised by the caller.

    The choices are named in the order given, and the one whose spelling is nearest, if any is near.
    """
    names = list(choices)
    listed = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f" (nearest: {lower[near[0]]})" if near else ""
    return ValueError(f"unknown {what} {value!r}: use {listed}{hint}")
