"""Sizes in bytes."""

import pytest

from kd_local.sizes import parse_bytes, shown_bytes


def test_shown_bytes():
    assert [shown_bytes(size) for size in (0, 999, 1024, 2**40)] == ["0 bytes", "999 bytes", "1.0 KiB", "1.0 TiB"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1B", 1),
        ("300000B", 300_000),
        ("8KB", 8_000),
        ("8KiB", 8_192),
        ("1.5MB", 1_500_000),
        ("0.5MiB", 524_288),
        ("8GB", 8_000_000_000),
        ("8GiB", 8_589_934_592),
        ("2.3 GiB", 2_469_606_195),
        ("1TB", 10**12),
        (" 1TiB ", 2**40),
    ],
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GiB", "8G", "8gib", "-8GiB", "8 Gi B", "1e3B", "nanB", "8GiB!", "0B", ".5MB"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError) as error:
        parse_bytes(text)
    assert str(error.value) == (
        f"{text!r} is not a number of bytes: use a number and a unit, such as 8GiB or 1.5GB, that give 1 byte or more; "
        "the units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"
    )
