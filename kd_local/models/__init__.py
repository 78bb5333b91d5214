"""The zoo: each file defines one family as a sequence of blocks."""

from kd_local.models.convolution import Conv, conv2d
from kd_local.models.registry import NAMES, create
from kd_local.models.resnet import resnet

__all__ = ["NAMES", "Conv", "conv2d", "create", "resnet"]
