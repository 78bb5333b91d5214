"""The ImageNet configs and their options."""

import importlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs.checks import check_used
from experiments.from_config.experiment import build


def config_of(file: str, option: str = "") -> ConfigDict:
    return importlib.import_module(f"experiments.configs.{file}").get_config(option)


CUT = {
    "contsup.imagenet": ("network=resnet50,k=2,context=R1E", "network=resnet101,k=4,context=R0"),
    "contsup.vit": ("network=vit_s16,k=4,context=R1E", "network=vit_ti16,k=2,context=R0"),
}
TAUGHT = {
    "blockkd.imagenet": ("pair=resnet34-resnet18", "pair=resnet50-mobilenetv1"),
    "blockkd.vit": ("pair=resnet50-vit_s16", "pair=resnet50-vit_ti16", "pair=resnet50-vit_ti_16"),
}
BATCHES = {1024: 1252, 512: 2503}
"""Of an epoch of 1,281,167 images, by the size of a batch."""


def with_values(config: ConfigDict, **values: object) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return changed


@pytest.mark.parametrize(("file", "option"), [(file, option) for file, both in CUT.items() for option in both])
def test_options_set_network_modules_and_context_only(file: str, option: str) -> None:
    network, k, context = (item.partition("=")[2] for item in option.split(","))
    values = {"network__name": network, "local__modules": int(k), "local__context": context}
    if not context.endswith("E"):
        values["local__image_encoder"] = "full"
    assert config_of(file, option).to_dict() == with_values(config_of(file), **values).to_dict()


@pytest.mark.parametrize(("file", "option"), [(file, option) for file, both in TAUGHT.items() for option in both])
def test_options_set_the_pair_and_its_dkd_weight_only(file: str, option: str) -> None:
    config = config_of(file, option)
    assert f"pair={config.teacher.network}-{config.network.name}" == option
    values = {
        "network__name": config.network.name,
        "teacher__network": config.teacher.network,
        "dkd__beta": config.dkd.beta,
    }
    assert config.to_dict() == with_values(config_of(file), **values).to_dict()


@pytest.mark.parametrize("file", TAUGHT)
def test_options_set_the_method_of_distillation(file: str) -> None:
    groups = ("method", "dkd", "block_kd")
    given, default = (config_of(file, option).to_dict() for option in ("method=dkd", ""))
    assert (given["method"], default["method"]) == ("dkd", "block_kd")
    assert {key: given[key] for key in given if key not in groups} == {
        key: default[key] for key in default if key not in groups
    }


@pytest.mark.parametrize("file", CUT)
def test_one_module_is_end_to_end(file: str) -> None:
    config = config_of(file, "k=1")
    assert config.method == "end_to_end"
    check_used(config)


@pytest.mark.parametrize("file", ["contsup.imagenet", "contsup.vit"])
def test_contsup_configs_cut_the_network(file: str) -> None:
    config = config_of(file)
    experiment = build(config)
    assert (experiment.modules, experiment.shape) == (config.local.modules, (224, 224, 3))
    assert len(experiment.boundaries) == config.local.modules - 1
    steps, rate, warm = BATCHES[config.batch_size], config.optimizer.learning_rate, config.optimizer.warmup_epochs
    assert float(experiment.schedule(warm * steps)) == pytest.approx(rate)
    assert float(experiment.schedule((config.epochs + warm) * steps // 2)) == pytest.approx(rate / 2)
    assert float(experiment.schedule(config.epochs * steps)) == pytest.approx(0, abs=1e-9)


@pytest.mark.exhaustive
@pytest.mark.parametrize("file", ["blockkd.imagenet", "blockkd.vit"])
def test_block_kd_configs_have_a_student_and_a_teacher(file: str) -> None:
    config = config_of(file)
    experiment = build(config, fresh_teachers=True)
    assert (config.method, experiment.modules, experiment.shape) == ("block_kd", None, (224, 224, 3))
    state = jax.eval_shape(experiment.method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    assert set(state) == {"student", "teacher0"}
    if config.optimizer.schedule == "piecewise":
        epochs = [epoch for milestone in config.optimizer.milestones for epoch in (milestone - 1, milestone)]
        rates = [float(experiment.schedule(epoch * BATCHES[config.batch_size])) for epoch in (0, *epochs)]
        powers = np.repeat(range(len(epochs) // 2 + 1), 2)[: len(rates)]
        np.testing.assert_allclose(rates, config.optimizer.learning_rate * 0.1**powers, rtol=1e-5)


@pytest.mark.parametrize(("file", "options"), [*CUT.items(), *TAUGHT.items()])
def test_the_default_is_the_first_option(file: str, options: tuple[str, ...]) -> None:
    assert config_of(file).to_dict() == config_of(file, options[0]).to_dict()


@pytest.mark.parametrize(
    ("file", "option", "message"),
    [
        ("contsup.imagenet", "resnet50_k2", "^unknown option 'resnet50_k2': use network, k or context$"),
        ("contsup.imagenet", "k=two", "^option 'k=two': expected k=int, such as k=2$"),
        ("contsup.vit", "contexts=R0", r"^unknown option 'contexts': use .* \(nearest: context\)$"),
        ("blockkd.imagenet", "pair=resnet34-resnet8", r"^unknown pair .*use .* \(nearest: resnet34-resnet18\)$"),
        ("blockkd.vit", "pair=vit_s16", r"^unknown pair 'vit_s16': use resnet50-vit_s16, .* or vit_b_16-resnet50"),
    ],
)
def test_an_unknown_option_is_refused(file: str, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(file, option)


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unknown context 'R1D': use R0, E, R1, R1E"):
        build(config_of("contsup.imagenet", "k=4,context=R1D"))
