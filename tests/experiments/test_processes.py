"""Processes of one run that were given different configs."""

import json

import pytest

from experiments.configs.default import get_config
from experiments.train import processes
from experiments.train.processes import DisagreementError, agree, shared_options


class Others:
    """A barrier where other processes say what is given, and which counts rounds."""

    rounds = 0

    def __init__(self, *texts):
        self.texts = texts

    def __call__(self, name):
        return self

    def wait(self, text="", *, seconds):
        self.rounds += 1
        return [text, *self.texts]


def test_every_key_that_differs_is_named_with_its_values(monkeypatch):
    values = [{"a": 0.1, "b": [1], "jax": "0.10"}, {"a": 0.2, "jax": "0.12"}, {"a": 0.2, "b": [1], "jax": "0.10"}]
    others = Others(*map(json.dumps, values[1:]))
    monkeypatch.setattr(processes, "Barrier", others)
    message = r"differ:\n  a: 0.1 in process 0, 0.2 in process 1\n  b: \[1\] in process 0, null in process 1\nstart all"
    with pytest.raises(DisagreementError, match=message):
        agree(values[0], seconds=1, free=["jax"])
    assert others.rounds == 2
    with pytest.raises(DisagreementError, match='jax: "0.10" in process 0, "0.12" in process 1'):
        agree(values[0], seconds=1)


def test_equal_values_agree(monkeypatch):
    monkeypatch.setattr(processes, "Barrier", Others(json.dumps({"a": [0.1]})))
    agree({"a": [0.1]}, seconds=1)


def test_paths_may_differ_between_processes():
    one, other = get_config(), get_config()
    other.data.data_dir, other.data.workers, other.distributed.start_seconds, other.teacher.cache = "/b", 3, 9, "/c"
    assert shared_options(one) == shared_options(other)
    other.steps, other.mesh.shard = 5, "state"
    differing = {key for key, value in shared_options(one).items() if shared_options(other)[key] != value}
    assert differing == {"steps", "mesh.shard"}
