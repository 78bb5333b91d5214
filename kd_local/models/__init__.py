"""The zoo of networks: each file defines one family as a sequence of blocks."""

from kd_local.models.convolution import Conv, conv2d
from kd_local.models.imagenet_resnet import imagenet_resnet
from kd_local.models.mobilenet import mobilenetv1, mobilenetv2
from kd_local.models.registry import NAMES, create
from kd_local.models.resnet import resnet
from kd_local.models.shufflenet import shufflenetv1, shufflenetv2
from kd_local.models.vgg import vgg
from kd_local.models.vision_transformer import vision_transformer
from kd_local.models.wide_resnet import wide_resnet

__all__ = [
    "NAMES",
    "Conv",
    "conv2d",
    "create",
    "imagenet_resnet",
    "mobilenetv1",
    "mobilenetv2",
    "resnet",
    "shufflenetv1",
    "shufflenetv2",
    "vgg",
    "vision_transformer",
    "wide_resnet",
]
