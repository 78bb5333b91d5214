"""Sizes in bytes as text."""

import re
from fractions import Fraction

MIB = 2**20
"""Bytes of a mebibyte."""

_UNITS: dict[str, int] = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


def shown_bytes(size: int) -> str:
    """A number of bytes as text, in the largest binary unit of which it has at least one.

    >>> shown_bytes(1_300_000_000)
    '1.2 GiB'
    """
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(size.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{size / 1024**power:.{min(power, 1)}f} {units[power]}"


def parse_bytes(text: str) -> int:
    """The number of bytes in a text such as `8GiB`, `1.5 GB` or `300000B`.

    >>> parse_bytes("1.5 KiB")
    1536

    Raises:
        ValueError: the text has another form, or is less than one byte.
    """
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS)})", text.strip())
    size = int(Fraction(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(
            f"{text!r} is not a number of bytes: use a number and a unit, such as 8GiB or 1.5GB, that give 1 byte or "
            f"more; the units are {', '.join(_UNITS)}"
        )
    return size
