"""The keys of the config: each is explained, and docs/configuration.md is current."""

from pathlib import Path

from flax.traverse_util import flatten_dict

from experiments.configs import default
from experiments.configs.description import Key, attributes
from experiments.configs.keys import flat_keys, hyper_parameter_keys
from experiments.configs.objectives import AUXILIARY_PARAMETERS, HYPER_PARAMETERS, PAIR_PARAMETERS
from experiments.configs.reference import reference
from experiments.configs.write_objectives import FILE, auxiliary_parameters, hyper_parameters, pair_parameters, text

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current():
    assert PAGE.read_text() == reference(), "run: python -m experiments.configs.reference > docs/configuration.md"


def test_every_key_of_the_default_config_is_explained():
    explained = dict(flat_keys()) | {
        f"{method}.{name}": key for method, group in hyper_parameter_keys().items() for name, key in group.items()
    }
    assert set(flatten_dict(default.get_config().to_dict(), sep=".")) == explained.keys()
    assert [name for name, key in explained.items() if not key.meaning] == []


def test_attributes_are_read_from_a_docstring():
    found = attributes(Key)
    assert list(found) == ["default", "values", "meaning", "uses", "path"]
    assert found["uses"] == "conditions that must all be met for the key to have an effect; empty if it always has one."


def test_a_change_of_a_config_does_not_change_the_default():
    default.get_config().teacher.cache = "/here"
    assert default.get_config().teacher.cache is None


def test_the_copied_hyper_parameters_are_those_of_the_classes():
    assert FILE.read_text() == text(), "run: python -m experiments.configs.write_objectives"
    assert hyper_parameters() == HYPER_PARAMETERS
    assert auxiliary_parameters() == AUXILIARY_PARAMETERS
    assert pair_parameters() == PAIR_PARAMETERS
