"""The default run: ContSup on digits, and every key there is with what it means.

Command: python -m experiments.train
"""

from dataclasses import fields
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from kd_local.distill import OBJECTIVES, StoneLoss


def get_config(options: str = "") -> ConfigDict:
    if options:
        raise ValueError(f"the default config takes no options, but got {options!r}: leave out the part after ':'")
    return ConfigDict(
        {
            "method": "contsup",  # or end_to_end; with a teacher: kd, block_kd, local_distillation, and those below
            "seed": 0,  # of initialisation, order and augmentation
            "epochs": 30,
            "batch_size": 64,  # over all devices
            "steps": placeholder(int),  # a limit on the steps, if any
            "network": {
                "name": "resnet8",  # see kd_local/models/registry.py
                "dtype": "float32",  # of the computation, or bfloat16; parameters stay float32
                "shortcut": "projection",  # or padding (He et al.'s option A)
            },
            "data": {
                "name": "digits",  # or cifar10, cifar100, svhn_cropped, stl10, imagenet2012, any that is prepared
                "data_dir": placeholder(str),  # where tensorflow-datasets keeps them; its own default if none
                "image_size": placeholder(int),  # of images that are streamed: 224 if none
                "workers": placeholder(int),  # processes that decode streamed images; one a core if none
                "train_examples": placeholder(int),  # a limit on the training images, if any
                "validation_examples": 0,  # held out from the training images
                "augment": True,  # crops and flips, as the data set is usually trained with
                "mean": placeholder(str),  # of each channel in [0, 1], 0.485,0.456,0.406; the data set's own if none
                "std": placeholder(str),  # likewise
            },
            "local": {
                "modules": 4,
                "context": "R1E",  # R0, E, R1, R1E, or Rn / RnE
                "boundaries": "equal",  # layers; balanced (memory), published, or names: stem,stage1/0
                "image_encoder": "full",  # of the context E; pooled is cheaper, and not the paper's
                "head": "1c2f",  # 0c1f, 0c2f, 1c1f, 1c2f, 1c3f, 2c2f
                "loss": "softmax",  # or contrast
                "decoder": False,  # reconstruct the image too
                "loss_scale": "published",  # with a decoder: or four numbers, 5,0.05,0.2,0.5
                "aux_width": 1.0,  # multiplies the channels of heads, decoders and image encoders
                "feature_width": 128,  # hidden units of a head, and the features of contrast
                "remat": "auto",  # compute again: blocks, contexts, head, decoder; none; auto is contexts
                "memory_budget": placeholder(str),  # such as 8GiB: the fewest modules that fit, instead of `modules`
                "answer": "last",  # who answers at inference: a module's name to exit early, ensemble
            },
            "end_to_end": {
                "remat": False,  # keep the blocks' outputs only, and compute the inside again
            },
            "teacher": {
                "network": placeholder(str),  # its name, or several with commas; a run's folder tells its own
                "weights": placeholder(str),  # a file of PyTorch's weights or the folder of a run; several with commas
                "shortcut": "projection",  # or padding
                "dtype": "float32",  # of its computation, or bfloat16
                "cache": placeholder(str),  # a folder to keep its logits in, for kd, dkd, mlkd and dist
            },
            **_objectives(),
            "optimizer": {
                "name": "sgd",  # or adam, adamw, lamb, lion
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "contsup",  # or cosine, constant, linear, piecewise
                "warmup_epochs": 5,
                "warmup_rate": 0.01,  # where the warm-up starts
                "milestones": (),  # of piecewise, in epochs
                "decay": 0.1,  # of piecewise, at each milestone
                "accumulate": 1,  # batches whose gradients are averaged for one update; none goes over an epoch's end
            },
            "step": "separate",  # an executable for each module, or joined into one: fewer launches, more memory
            "mesh": {
                "data": 1,  # devices among which a batch is divided
                "module": 1,  # groups of so many devices among which modules are divided, working at once
                "placement": "operations",  # what makes groups equal: multiply-adds, or time, measured before the run
                "batch_norm": "global",  # statistics over the batch, or device: each device's over its own part of it
                "shard": "nothing",  # or optimizer, state: what else is divided among the devices of `data`
            },
            "distributed": {  # of several processes, with --distributed; seconds
                "start_seconds": 300,  # how long they wait for each other
                "heartbeat_seconds": 100,  # a process not heard of for so long is lost, and the run ends
            },
            "checkpoint": {
                "keep": 3,
                "seconds": 10.0,  # at least so long between two
            },
        }
    )


def _objectives() -> dict[str, dict[str, Any]]:
    """The numbers of each way to teach, under its name: see its file in kd_local/distill."""
    objectives = {**OBJECTIVES, "local_distillation": StoneLoss}
    return {name: {field.name: field.default for field in fields(objective)} for name, objective in objectives.items()}
