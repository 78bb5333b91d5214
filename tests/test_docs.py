"""The README and the guides: their code runs, their links and paths exist, and they are short."""

import re
from pathlib import Path

import jax
import pytest
import yaml

from experiments.configs.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE_NAMES = ("architecture", "adding", "distillation", "local_learning", "many_devices", "teachers", "memory")
GUIDES = [ROOT / "docs" / f"{name}.md" for name in GUIDE_NAMES]
PAGES = [README, *GUIDES, *(ROOT / "docs" / f"{name}.md" for name in ("results", "configuration", "index"))]


def named(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda path: path.stem)


def test_the_readme_opens_with_the_two_lines():
    lines = [line.strip() for line in README.read_text().splitlines() if line.startswith("    ")]
    assert lines[:2] == [
        "pip install -r requirements.txt && python -m experiments.train",
        "pip install -r requirements.txt && python -m pytest",
    ]


@pytest.mark.exhaustive
@named([README, *GUIDES])
def test_code_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    # As a user has it: without the strict promotion of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            names: dict = {"__name__": "docs"}
            exec(compile(block, page.name, "exec"), names)
            if page == README:
                assert names["accuracy"] > 0.9


@named(PAGES)
def test_links_and_paths_exist(page):
    text = page.read_text()
    links = {page.parent / link.split("#")[0] for link in re.findall(r"\]\(((?!http)[^)#]+)", text)}
    paths = {ROOT / path for path in re.findall(r"\b(?:kd_local|experiments|tests|docs)/[\w/.]*\w/?", text)}
    paths = {path for path in paths if not re.search(r"[A-Z]{4}", path.name)}  # NAME stands for a name
    assert sorted(str(path) for path in links | paths if not path.exists()) == []


@named([README, *GUIDES])
def test_pages_are_short(page):
    assert len(page.read_text().splitlines()) <= (120 if page == README else 80)


def test_the_guide_of_distillation_names_every_objective():
    text = (ROOT / "docs" / "distillation.md").read_text()
    assert [name for name in OBJECTIVES if f"`{name}`" not in text] == []


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
    program_file = ROOT / "experiments" / "train" / "__main__.py"
    assert all(f'"{flag}"' in program_file.read_text() for flag in given if not flag.startswith("config."))
