"""The network of a file that is read, and its names. Arrays replace tensors, so torch is not needed."""

import numpy as np
import pytest

from kd_local.interop.wrappers import find_state, plain_names

X = np.zeros(2)
STATE = {"conv1.weight": X, "fc.bias": X, "epoch": 3}


def is_array(value):
    return isinstance(value, np.ndarray)


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        *({wrapper: STATE, "epoch": 7, "best_acc1": X} for wrapper in ("state_dict", "model_state_dict", "net")),
        {"checkpoint": {"model": {"state_dict": STATE}}, "best": X},
        {"network_of_this_repository": STATE, "optimizer": {"state": {0: {"exp_avg": X}}, "param_groups": []}},
        {"state_dict": STATE, "projector": {"mlp.weight": X}, "optimizer": {"state": {0: {"exp_avg": X}}}},
    ],
)  # fmt: skip
def test_the_only_network_is_found(saved):
    found, notes = find_state(saved, is_array)
    assert list(found) == ["conv1.weight", "fc.bias"] and notes == ()


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        ({"state_dict_ema": {"a.b": X}, "state_dict": STATE}, "'state_dict' is read, not the moving average 'state_d"),
        (
            {"model": STATE, "model_ema": {"module.a": X, "n_averaged": X}},
            "'model' is read, not the moving average 'mo",
        ),
        ({"ema": STATE, "epoch": 1}, "'ema' is read, a moving average"),
    ],
)
def test_a_choice_between_a_network_and_its_average_is_reported(saved, note):
    found, notes = find_state(saved, is_array)
    assert list(found) == ["conv1.weight", "fc.bias"]
    assert notes[0].startswith(note)


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        ({"student": STATE, "teacher": STATE}, "holds several networks, 'student', 'teacher': save one of them"),
        ({"a": {"model": STATE, "net": STATE}}, "holds several networks, 'a.model', 'a.net'"),
        (
            {"epoch": 7, "model": {"lr": 0.1}},
            "has no named tensors, only entries 'epoch', 'model': save a network's st",
        ),
        ([X], "has no named tensors, only list: save"),
        ({0: X}, "has no named tensors, only entries 0"),
    ],
)
def test_several_networks_and_none_are_refused(saved, text):
    with pytest.raises(ValueError, match=text):
        find_state(saved, is_array)


def of(*names):
    return dict.fromkeys(names, X)


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (("module.a.b", "module.c"), ("a.b", "c")),
        (("module.a", "b"), ("module.a", "b")),
        (("_orig_mod.module.a.b", "_orig_mod.module.c"), ("a.b", "c")),
        (("module._orig_mod.model.a",), ("a",)),
        (("model.conv1.weight", "criterion.weight", "loss_fn.w"), ("conv1.weight",)),
        (("net.conv1.weight", "criterion.weight"), ("conv1.weight",)),
        (("network.module.conv1.weight", "network.module.fc.bias"), ("conv1.weight", "fc.bias")),
        (("model.0.0.weight", "model.1.0.weight", "fc.weight"), ("model.0.0.weight", "model.1.0.weight", "fc.weight")),
        (("backbone.conv1.weight", "fc.weight"), ("conv1.weight", "fc.weight")),
        (("backbone.conv1.weight", "head.fc.weight"), ("conv1.weight", "fc.weight")),
        (("backbone.conv1.weight", "neck.weight"), ("backbone.conv1.weight", "neck.weight")),
        (("total_ops", "total_params", "module.conv1.total_ops", "module.conv1.weight"), ("conv1.weight",)),
        (("n_averaged", "module.conv1.weight"), ("conv1.weight",)),
        (("conv1.weight", "bn1.num_batches_tracked"), ("conv1.weight", "bn1.num_batches_tracked")),
        ((), ()),
    ],
)
def test_prefixes_and_additions_are_removed(names, plain):
    assert plain_names(of(*names)) == (of(*plain), ())


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("module.student.a", "module.teacher.a"), "'student.' is read, not 'teacher.'"),
        (("encoder_q.a", "encoder_k.a", "queue", "queue_ptr"), "'encoder_q.' is read, not 'encoder_k.'"),
    ],
)
def test_a_network_that_is_left_out_is_reported(names, note):
    assert plain_names(of(*names)) == (of("a"), (note,))
