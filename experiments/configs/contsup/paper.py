"""Hyper-parameters of the ContSup paper's tables and figures, as in the authors' commands.

ResNet-32 or ResNet-110; SGD with Nesterov momentum 0.9 and weight decay 1e-4 on all parameters; 160 epochs of the
authors' cosine schedule with 10 epochs of warm-up from 0.01; learning rate 0.8 at batch 1024, or 0.1 at batch 128 for
STL-10.

Reference: Yu et al., arXiv 2312.07636, and the authors' code.
"""

from ml_collections import ConfigDict

from experiments.configs import default


def published(
    *,
    k: int,
    network: str = "resnet32",
    data: str = "cifar10",
    context: str = "R0",
    loss: str = "softmax",
    decoder: bool = False,
    boundaries: str = "equal",
    head: str = "1c2f",
) -> ConfigDict:
    """The config of a run of the paper: K modules, or with K = 1 the same network end to end."""
    config = default.get_config()
    config.epochs = 160
    config.network.name = network
    config.data.name = data
    config.batch_size, config.optimizer.learning_rate = (128, 0.1) if data == "stl10" else (1024, 0.8)
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "contsup"
    config.optimizer.warmup_epochs = 10
    if k == 1:
        config.method = "end_to_end"
        return config
    config.method = "contsup"
    config.local.modules = k
    config.local.context = context
    config.local.loss = loss
    config.local.decoder = decoder
    config.local.loss_scale = "published"
    config.local.boundaries = boundaries
    config.local.head = head
    return config
