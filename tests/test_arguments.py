"""Wrong arguments of the notebook API are refused when a function is called, with the name and what was expected."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.data import Augmentation, augment, batches, load, normalise
from kd_local.distill import KD, BlockKD, Distillation, Renormalisation, StoneLoss, TaughtContSup, Teacher, TeacherRule
from kd_local.distill.objectives.at import attention_loss
from kd_local.distill.objectives.crd import CRD, crd_loss, remember
from kd_local.distill.objectives.dist import DIST, dist_loss, pearson_distance
from kd_local.distill.objectives.distances import logit_distance
from kd_local.distill.objectives.dkd import DKD, dkd_loss
from kd_local.distill.objectives.fitnet import hint_loss
from kd_local.distill.objectives.gdkd import gdkd_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd import MLKD, batch_correlation_loss, class_correlation_loss, mlkd_loss
from kd_local.distill.objectives.nkd import nkd_loss
from kd_local.distill.objectives.nst import nst_loss
from kd_local.distill.objectives.ofa import ofa_loss
from kd_local.distill.objectives.ofd import margins, ofd_loss
from kd_local.distill.objectives.pkt import pkt_loss
from kd_local.distill.objectives.reviewkd import hcl_loss
from kd_local.distill.objectives.rkd import rkd_loss
from kd_local.distill.objectives.rld import rld_loss
from kd_local.distill.objectives.sp import similarity_loss
from kd_local.distill.objectives.ttm import ttm_loss
from kd_local.distill.objectives.vid import vid_loss
from kd_local.distill.sample_weights import entropy_weights
from kd_local.distill.standardisation import standardise
from kd_local.local import (
    HPFF,
    ContSup,
    EndToEnd,
    PairTraining,
    TaskLoss,
    balanced_class_weights,
    cut,
    equal_layers,
    probe_accuracy,
)
from kd_local.local.decoders import reconstruction_loss
from kd_local.local.losses import contrast, local_loss, softmax
from kd_local.memory import balance, footprint, target
from kd_local.parallel import device_mesh
from kd_local.training import evaluate, make_optimizer, make_schedule, train
from kd_local.training.schedules import check_accumulate, contsup
from tests.support import tiny

pytestmark = pytest.mark.untyped  # the hook refuses these before the package does

X = np.ones((6, 4), np.float32)
LABELS = np.arange(6, dtype=np.int32) % 4
MAPS = np.ones((6, 2, 2, 3), np.float32)
NETWORK = tiny.network()
SGD = optax.sgd(0.1)
DATA = tiny.data(8, 8)
IMAGES = DATA.train.images[:4]
AUGMENTATION = Augmentation(mean=(100.0,), std=(50.0,))
METHOD = EndToEnd(NETWORK, SGD)
CUT = cut(NETWORK, 2, classes=4, context="R0")
TEACHER = Teacher(NETWORK, {"params": {}, "batch_stats": {}})

OF_LOGITS = [
    kd_loss,
    mlkd_loss,
    dist_loss,
    batch_correlation_loss,
    class_correlation_loss,
    partial(dkd_loss, labels=LABELS),
    partial(rld_loss, labels=LABELS),
    partial(nkd_loss, labels=LABELS),
    partial(ofa_loss, labels=LABELS),
    partial(gdkd_loss, k=2),
    ttm_loss,
    lambda s, t: entropy_weights(s, t).mean(),
]
OF_LOGITS += [lambda s, t, name=name: logit_distance(name, temperature=4.0)(s, t, LABELS) for name in ("kd", "dist")]
OF_LABELS = [softmax, contrast, TaskLoss(label_smoothing=0.1)]
OF_LABELS += [lambda x, labels, of=of: of(x, x, labels) for of in (dkd_loss, rld_loss, nkd_loss)]
OF_MAPS = [hint_loss, hcl_loss, reconstruction_loss, partial(ofd_loss, margin=np.zeros(3, np.float32))]
OF_MAPS += [partial(vid_loss, log_scale=np.zeros(3, np.float32))]
OF_FEATURES = [similarity_loss, rkd_loss, pkt_loss, pearson_distance]
OF_TWO_MAPS = [attention_loss, nst_loss]

CASES = [
    *((of, (X, other), message) for of in OF_LOGITS for other, message in (
        (X[:, :3], r"target has shape \(6, 3\): use \(batch, classes\); its classes is 3, and student has 4"),
        (X[:, :1], "its classes is 1"), (X[:5], "its batch is 5, and student has 6"), (X[:1], "its batch is 1"),
        (X[0], r"target has shape \(4,\): use \(batch, classes\); of a single one, target\[None\]"),
        (X[..., None], "target has shape"), (X.astype(int), "target is int64: use float numbers"),
        ([1.0], r"target is \[1.0\]: use an array"), (None, "target is None"),
    )),
    *((of, (X, labels), message) for of in OF_LABELS for labels, message in (
        (LABELS[:, None], r"labels has shape \(6, 1\): use \(batch,\), such as labels\[:, 0\]"),
        (np.eye(4, dtype=np.int32)[LABELS], r"use \(batch,\), such as labels.argmax\(axis=1\)"),
        (LABELS[:1], "its batch is 1"), (LABELS.astype(np.float32), "labels is float32: use int numbers"),
    )),
    *((of, (X, LABELS + by), "labels are .* use 0 to 3") for of in OF_LABELS if of is not contrast for by in (-1, 1)),
    *((of, (MAPS, other), "has shape") for of in OF_MAPS for other in (
        MAPS[:1], MAPS[:, :1], MAPS[..., :1], MAPS[..., 0], MAPS[None],
    )),
    *((of, (X, other), "has shape") for of in OF_FEATURES for other in (X[:1], X[:5])),
    *((of, (X, MAPS), "has shape") for of in (rkd_loss, pkt_loss)),
    *((of, (MAPS, other), "has shape") for of in OF_TWO_MAPS for other in (MAPS[:1], X)),
    *((partial(of, temperature=bad), (X, X), f"temperature is {bad!r}: use a number") for of in (
        kd_loss, dist_loss, batch_correlation_loss, class_correlation_loss, partial(dkd_loss, labels=LABELS),
    ) for bad in (0, -1, float("nan"), float("inf"), "4", None)),
    (partial(mlkd_loss, temperatures=()), (X, X), "temperatures is"),
    (partial(mlkd_loss, temperatures=(2, 0)), (X, X), "temperatures is"),
    (partial(dist_loss, beta=-1), (X, X), "beta is -1"),
    (partial(dkd_loss, alpha=float("nan")), (X, X, LABELS), "alpha is nan"),
    (partial(rkd_loss, angle_weight=-1), (X, X), "angle_weight is -1"),
    (partial(attention_loss, power=0), (MAPS, MAPS), "power is 0"),
    (standardise, (X[0],), "logits has shape"),
    (margins, (X,), "preactivations has shape"),
    (partial(ofd_loss, margin=np.zeros(1, np.float32)), (MAPS, MAPS), "margin has shape .* its c is 1"),
    (partial(vid_loss, log_scale=np.zeros(1, np.float32)), (MAPS, MAPS), "log_scale has shape"),
    (partial(crd_loss, examples=9), (X[:, 0], X, X > 0), "positive has shape"),
    (partial(crd_loss, examples=9), (X, X, X > 0), "its 1 is 4, not 1"),
    (partial(crd_loss, examples=1), (X[:, :1], X, X > 0), "examples is 1"),
    (partial(crd_loss, examples=9), (X[:, :1], X, X), "counted is float32: use bool"),
    (partial(remember, momentum=1), (X, LABELS, X), "momentum is 1"),
    (partial(remember, momentum=0.5), (X, LABELS[:1], X), "embeddings has shape"),
    (partial(probe_accuracy, classes=0), (X, LABELS, X, LABELS), "classes is 0"),
    (partial(probe_accuracy, classes=4), (X, LABELS, X[:, :3], LABELS), "use the same"),
    (partial(probe_accuracy, classes=4, ridge=-1), (X, LABELS, X, LABELS), "ridge is -1"),
    (local_loss, ("softmx",), "nearest: softmax"),
    (balanced_class_weights, (LABELS, 3), "labels are from 0 to 3"),
    (balanced_class_weights, (LABELS[:, None], 4), "labels has shape"),
    (balanced_class_weights, (LABELS, 0), "classes is 0"),
    *((partial(TaskLoss, label_smoothing=bad), (), "label_smoothing is")
      for bad in (1, -0.1, float("nan"), "0.1", True)),
    *((partial(TaskLoss, class_weights=bad), (), "class_weights") for bad in (
        [1.0, 2.0], (0.0, 1.0), (-1.0,), (float("inf"),), ("a",), "balanced", np.ones(4),
    )),
    *((partial(kind, temperature=bad), (), "temperature is") for kind in (KD, DKD, DIST, BlockKD, StoneLoss, CRD)
      for bad in (0, -1, float("nan"), "4")),
    (partial(MLKD, temperatures=[]), (), "temperatures is"),
    (partial(KD, weight=-1), (), "weight is -1"),
    (partial(KD, standardise="yes"), (), "standardise is 'yes': use true or false"),
    (partial(BlockKD, stones=()), (), "stones is"),
    (partial(BlockKD, distance="l2"), (), "unknown logit distance"),
    (partial(CRD, negatives=0), (), "negatives is 0"),
    (EndToEnd, ("resnet8", SGD), r"network is 'resnet8': use a .*Network, such as create\('resnet8', classes=10\)"),
    (EndToEnd, (NETWORK, 0.1), r"optimizer is 0.1: use one of optax, such as optax.sgd\(0.1\)"),
    (partial(EndToEnd, task_loss="softmax"), (NETWORK, SGD), "task_loss is 'softmax'"),
    (ContSup, (NETWORK, SGD), r"cut_network is a Network: use the result of cut\(network"),
    (PairTraining, (NETWORK, HPFF(), SGD), r"cut_network is a Network: use the result of cut\(network"),
    (PairTraining, (cut(NETWORK, 2, classes=4, context="R0"), "hpff", SGD), r"rule is 'hpff': use HPFF\(\)"),
    (Distillation, (NETWORK, TEACHER, KD(), SGD), "teachers is a Teacher: use a tuple"),
    (Distillation, (NETWORK, [TEACHER], KD(), SGD), "teachers is .*: use a tuple"),
    (Distillation, (NETWORK, (NETWORK,), KD(), SGD), "a teacher is a Network: use Teacher"),
    (Distillation, (NETWORK, (TEACHER,), KD, SGD), "objective is .*KD.*: use an objective, such as KD"),
    (Distillation, (NETWORK, (TEACHER,), "kd", SGD), "objective is 'kd'"),
    (Distillation, (NETWORK, (), KD(), SGD), "no teacher"),
    (partial(Distillation, examples=0), (NETWORK, (TEACHER,), KD(), SGD), "examples is 0"),
    (TeacherRule, ((TEACHER,), (8, 8, 1)), "teacher is .*: use one Teacher"),
    (TeacherRule, (TEACHER, (8, 8, 1), KD()), "objective is a KD: use StoneLoss"),
    (TeacherRule, (TEACHER, (1, 8, 8, 1)), "shape is .*: use height, width"),
    (partial(TaughtContSup, rule=TEACHER), (CUT, SGD), "rule is a Teacher: use the TeacherRule"),
    (partial(TaughtContSup, rule=TeacherRule(TEACHER, (8, 8, 1))), (CUT, SGD), "was not cut with this teacher"),
    (partial(cut, NETWORK, 2, classes=4, auxiliary=TeacherRule(TEACHER, (8, 8, 1)), loss="contrast"), (),
     "loss is contrast, but TeacherRule has a loss of its own"),
    (partial(cut, NETWORK, 2, classes=4, auxiliary=TeacherRule(TEACHER, (8, 8, 1)), head="1c2f"), (),
     "TeacherRule has no head: leave head out"),
    (Teacher, ("resnet8", {}), "a teacher's network is 'resnet8'"),
    (Teacher, (NETWORK, None), "a teacher's variables is None"),
    (Renormalisation.between, (([1.0], [1.0]), ([1.0], [0.0])), "std of a channel is 0"),
    *((partial(cut, NETWORK, 2, **{"classes": 4, **bad}), (), message) for bad, message in (
        ({"classes": 0}, "classes is 0"), ({"classes": 10}, "classes is 10, but the network has 4"),
        ({"head": "1c2"}, "nearest: 1c2f"), ({"context": "R1e"}, "unknown context 'R1e'"),
        ({"loss": "mse"}, "unknown local loss"), ({"remat": "blocks"}, "remat is 'blocks': use a tuple"),
        ({"decoder": True}, "decoder is True: use PixelScale"), ({"aux_width": 0}, "aux_width is 0"),
        ({"feature_width": 1.5}, "feature_width is 1.5"), ({"loss_scale": 1.0}, "loss scale 1.0: give four"),
        ({"loss_scale": (1, 1, 1, float("nan"))}, "loss scale"), ({"loss_scale": "1111"}, "loss scale"),
    )),
    *((partial(cut, classes=4), (NETWORK, bad), "modules") for bad in (0, -1, 2.0, "2", 9, True)),
    (partial(cut, classes=4), (4, NETWORK), "network is 4"),
    *((equal_layers, (NETWORK, bad), "use 1 to 3") for bad in (0, 4, 2.0, "2")),
    *((partial(make_schedule, **{"epochs": 3, "steps_per_epoch": 2, **bad}), ("cosine", rate), message)
      for bad, rate, message in (
        ({"steps_per_epoch": 0}, 0.1, "steps_per_epoch is 0"), ({"epochs": 1.5}, 0.1, "epochs is 1.5"),
        ({"epochs": 0}, 0.1, "epochs is 0"), ({"warmup_epochs": -1}, 0.1, "warmup_epochs is -1"),
        ({}, 0, "rate is 0"), ({}, "0.1", "learning rate is '0.1'"), ({}, float("nan"), "learning rate is nan"),
    )),
    (partial(contsup, epochs=0, steps_per_epoch=1), (0.1,), "epochs is 0"),
    (check_accumulate, ("2", 4), "accumulate is '2'"),
    *((partial(make_optimizer, **bad), ("sgd", rate), message) for bad, rate, message in (
        ({}, "0.1", "the learning rate is '0.1'"), ({}, -0.1, "the learning rate is -0.1"),
        ({"momentum": 1}, 0.1, "momentum is 1"), ({"accumulate": 0}, 0.1, "accumulate is 0"),
        ({"accumulate": 1.5}, 0.1, "accumulate is 1.5"), ({"nesterov": "no"}, 0.1, "nesterov is 'no'"),
        ({"weight_decay": -1}, 0.1, "weight_decay is -1"),
    )),
    (make_optimizer, ("SGD", 0.1), "nearest: sgd"),
    *((partial(Augmentation, **{"mean": (1.0,), "std": (1.0,), **bad}), (), message) for bad, message in (
        ({"mean": 1.0}, "mean is 1.0: use a tuple"), ({"std": [1.0]}, "std is .*: use a tuple"),
        ({"pad": -1}, "pad is -1"), ({"pad": 1.5}, "pad is 1.5"), ({"flip": "yes"}, "flip is 'yes'"),
        ({"mean": ("a",)}, "mean of a channel is 'a'"), ({"std": (float("nan"),)}, "use numbers from 0.255"),
    )),
    *((of, (AUGMENTATION, IMAGES.astype(kind)), f"images are {kind}: use pixels") for of in (
        normalise, partial(augment, rng=jax.random.key(0)),
    ) for kind in ("float32", "int32")),
    (normalise, (AUGMENTATION, IMAGES[:, 0, 0]), "images have shape"),
    (partial(batches, seed=0, batch_size=4), (DATA,), "split is a Data: use a split of data, such as data.train"),
    *((partial(batches, DATA.train, **{"seed": 0, "batch_size": 4, **bad}), (), message) for bad, message in (
        ({"batch_size": 0}, "batch_size 0"), ({"batch_size": 4.0}, "batch_size 4.0"), ({"batch_size": 99}, "batch"),
        ({"seed": -1}, "seed -1"), ({"seed": "0"}, "seed 0"), ({"start_step": -1}, "step -1"),
    )),
    *((partial(train, **{"method": METHOD, "data": DATA, "epochs": 1, "batch_size": 4, **bad}), (), message)
      for bad, message in (
        ({"epochs": 0}, "epochs is 0"), ({"epochs": 1.5}, "epochs is 1.5"), ({"batch_size": 0}, "batch_size 0"),
        ({"steps": 0}, "steps is 0"), ({"seed": -1}, "seed is -1"), ({"seed": 2**40}, "seed is"),
        ({"data": DATA.train}, "data is .*: use data of load"), ({"method": NETWORK}, "method is a Network"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds is -1"),
    )),
    (lambda: evaluate(METHOD, {}, DATA.test, batch_size=4, mesh=device_mesh()), (), "data is"),
    *((device_mesh, bad, message) for bad, message in (
        ((0,), "a mesh of 0 devices"), ((2.0,), "data is 2.0"), ((1, -1), "-1 on the module"), ((999,), "of 999"),
    )),
    *((partial(footprint, METHOD), bad, message) for bad, message in (
        (((8, 8, 1), 0, target()), "batch is 0"), (((8, 8), 4, target()), "shape is"),
        (((4, 8, 8, 1), 4, target()), "shape is"), (((8, 8, 1), 4, "local"), "target is 'local'"),
    )),
    (lambda: balance(None, NETWORK, modules=2, shape=(8, 8, 1), batch=4, target="local"), (), "target is 'local'"),
    (lambda: load("digts"), (), "nearest: digits"),
    (lambda: load("digits", workers=2), (), "workers is 2, but the images of digits are held in memory: leave it out"),
    (lambda: load("digits", image_size=8), (), "image_size"),
]  # fmt: skip


def test_wrong_arguments_are_refused():
    for number, (of, arguments, message) in enumerate(CASES):
        refused = "accepted"
        try:
            of(*arguments)
        except ValueError as error:
            refused = str(error)
        assert re.search(message, refused), f"case {number}, {of}"


def test_right_arguments_are_accepted_when_traced():
    for of in OF_LOGITS:
        assert jax.eval_shape(of, X, X).shape == ()
    for of in OF_LABELS:
        jax.eval_shape(of, X, LABELS)
    for of in OF_MAPS + OF_TWO_MAPS:
        assert jax.eval_shape(of, MAPS, MAPS).shape == ()
    assert jax.eval_shape(kd_loss, X.astype(jnp.bfloat16), X).dtype == jnp.float32
