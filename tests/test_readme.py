"""What the README shows is what runs."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_it_opens_with_the_two_lines():
    lines = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert lines[:2] == [
        "pip install -r requirements.txt && python -m experiments.train",
        "pip install -r requirements.txt && python -m pytest",
    ]


# As a notebook has it; optax's schedules mix integers and floats.
@jax.numpy_dtype_promotion("standard")
def test_the_lines_for_a_notebook_train():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    names: dict = {}
    exec(code, names)
    assert names["accuracy"] > 0.9


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (Path(__file__).parents[1] / link).exists()
