"""ContSup on CIFAR-10 with ResNet-32, the network and schedule of the paper's tables 1 and 2 (K modules, softmax loss).

Command: python -m experiments.train --config=experiments/configs/contsup/cifar10.py:k=8 --config.data.data_dir=DIR
Options: k (1 to 17), context, batch. The learning rate is 0.1 for each 128 images of a batch; batch=1024 is the
published setting.
Reference: Yu et al., arXiv 2312.07636. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.options import parse_options


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=16, context="R1E", batch=128)
    config = default.get_config()
    config.epochs = 160
    config.batch_size = choice["batch"]
    config.network.name = "resnet32"
    config.data.name = "cifar10"
    config.local.modules = choice["k"]
    if choice["k"] > 1:
        config.local.context = choice["context"]
    config.optimizer.learning_rate = 0.1 * choice["batch"] / 128
    config.optimizer.warmup_epochs = 10
    return config
