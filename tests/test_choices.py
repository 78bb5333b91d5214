"""The names of `kd_local.choices` are those of the implementations."""

from kd_local.choices import data, local, networks, steps
from kd_local.data import registry as data_sets
from kd_local.local.losses import LOSSES as local_losses
from kd_local.memory import targets
from kd_local.models import registry


def test_each_name_has_an_implementation():
    assert tuple(local_losses) == local.LOSSES
    assert tuple(registry._CIFAR_RESNETS) == networks.CIFAR_RESNETS
    assert (*registry._CIFAR_RESNETS, *registry._OTHERS) == networks.NETWORKS
    assert (
        "local",
        *(f"tpu:{kind}" for kind in targets._TPUS),
        *(f"gpu:{kind}" for kind in targets.GPUS),
    ) == steps.TARGETS
    assert tuple(data_sets.DATASETS) == data.DATASETS
