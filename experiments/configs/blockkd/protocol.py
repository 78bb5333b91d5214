"""Protocols of distillation: the usual one for CIFAR-100, and a short one for digits.

SGD with momentum 0.9 and weight decay 5e-4, batch 64, 240 epochs, rate 0.05, multiplied by 0.1 at 150, 180 and 210;
rate 0.01 for MobileNetV2 and ShuffleNets. For digits, 20 epochs of cosine decay from 0.05. For vision transformers, in
place of SGD, AdamW with rate 0.001 and weight decay 0.05; these are ours.

Reference: mdistiller (Zhao et al., CVPR 2022, arXiv 2203.08679), which follows CRD (Tian et al., ICLR 2020).
"""

from ml_collections import ConfigDict

from experiments.configs import default


def protocol(network: str, data: str) -> ConfigDict:
    """The config that trains a network end to end."""
    config = default.get_config()
    config.method = "end_to_end"
    config.network.name = network
    config.data.name = data
    config.batch_size = 64
    config.optimizer.warmup_epochs = 0
    if network.startswith("vit"):
        config.optimizer.update(name="adamw", learning_rate=1e-3, weight_decay=0.05)
    else:
        config.optimizer.nesterov = False
        config.optimizer.weight_decay = 5e-4
        config.optimizer.learning_rate = 0.01 if network.startswith(("mobilenet", "shufflenet")) else 0.05
    if data == "digits":
        config.epochs = 20
        config.optimizer.schedule = "cosine"
    else:
        config.epochs = 240
        config.optimizer.schedule = "piecewise"
        config.optimizer.milestones = (150, 180, 210)
    return config


def taught(student: str, teacher: str, data: str, method: str) -> ConfigDict:
    """The config that trains a student; `teacher.weights` is not set. `end_to_end` has no teacher.

    With method `contsup`, each of a CIFAR ResNet's three stages is a module, which learns through the teacher.
    """
    config = protocol(student, data)
    config.method = method
    if method == "contsup":
        config.local.update(modules=3, boundaries="stages", context="R0", auxiliary="teacher")
    if method != "end_to_end":
        config.teacher.network = teacher
    return config
