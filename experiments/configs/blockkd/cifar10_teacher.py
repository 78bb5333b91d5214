"""CIFAR ResNets with option A shortcuts, as in pytorch_resnet_cifar10: evaluate its weights, or train such a teacher.

Commands: python -m experiments.evaluate --config=experiments/configs/blockkd/cifar10_teacher.py \
              --config.network.name=resnet20 --config.data.data_dir=DIR --weights=resnet20.npz
          python -m experiments.train --config=experiments/configs/blockkd/cifar10_teacher.py --config.data.data_dir=DIR

ResNet-20's weights have an accuracy of 81.04 % (docs/measurements.md). Not trained to the end.

Reference: github.com/akamaster/pytorch_resnet_cifar10: 200 epochs, batch 128, rate 0.1, a tenth of it from 100 and 150.
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(options: str = "") -> ConfigDict:
    if options:
        raise ValueError(f"this config takes no options, but got {options!r}: leave out the part after ':'")
    config = default.get_config()
    config.method = "end_to_end"
    config.epochs = 200
    config.batch_size = 128
    config.network.name = "resnet56"
    config.network.shortcut = "padding"
    config.data.name = "cifar10"
    config.data.mean = "0.485,0.456,0.406"
    config.data.std = "0.229,0.224,0.225"
    config.optimizer.nesterov = False
    config.optimizer.schedule = "piecewise"
    config.optimizer.warmup_epochs = 0
    config.optimizer.milestones = (100, 150)
    return config
