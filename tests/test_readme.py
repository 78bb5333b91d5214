"""What the README shows is what runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_opens_with_the_two_lines():
    lines = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert lines[:2] == [
        "pip install -r requirements.txt && python -m experiments.train",
        "pip install -r requirements.txt && python -m pytest",
    ]


def test_the_lines_for_a_notebook_train():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    # In a process of its own, without strict promotion, as a user has it.
    done = subprocess.run([sys.executable, "-c", f"{code}\nprint(accuracy)"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_pods_of_kubernetes_find_each_other():
    service, job = yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text())
    spec, pods = job["spec"], job["spec"]["template"]["spec"]
    program, *flags = pods["containers"][0]["command"][2:]
    given = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    assert program == "experiments.train"
    assert spec["completions"] == spec["parallelism"] == int(given["processes"]) == int(given["config.mesh.data"])
    # A pod of an indexed job is called JOB-INDEX, within the domain of the service that selects it.
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name} and pods["subdomain"] == service["metadata"]["name"]
    assert given["coordinator"].split(":")[0] == f"{name}-0.{pods['subdomain']}"
    assert given["index"] == "$(JOB_COMPLETION_INDEX)"
    text = (ROOT / "experiments" / "train.py").read_text()
    assert all(f'"{flag}"' in text for flag in given if not flag.startswith("config."))
