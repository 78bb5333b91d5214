"""The flags of the measurement of reading have limits."""

import pytest

from experiments.input_bench.__main__ import check_limits

USUAL = {"images": 1000, "size": 224, "batch": 50}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 0}, "--images is 0: use a whole number from 1 to 10000000"),
        ({"images": 10**9}, "--images is 1000000000: use a whole number .*; more take hours"),
        ({"size": 4097}, "--size is 4097: use a whole number from 1 to 4096"),
        ({"batch": 10**6}, "--batch is 1000000: .*; as many files are written"),
        ({"batch": 10_000}, "a batch of 10000 crops of 224x224 has 1.* GiB, and several are in memory: use a smaller"),
    ],
)
def test_numbers_that_need_too_much_are_refused(changed, message):
    check_limits(**USUAL)
    with pytest.raises(ValueError, match=message):
        check_limits(**{**USUAL, **changed})
