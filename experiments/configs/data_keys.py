"""The config keys of images, and of the strong view of images."""

from ml_collections.config_dict import placeholder

from experiments.configs.description import Group, Key, path
from experiments.configs.uses import PREPARED, STRONG
from kd_local.choices.data import STRONG_VIEW as ARGUMENTS
from kd_local.ranges import Number, Switch, Text

DATA: Group = {
    "name": Key("digits", Text("a name"), "`digits` (included), `cifar10`, `imagenet2012`, or another prepared set"),
    "data_dir": path("folder of tensorflow-datasets; none: its default folder"),
    "image_size": Key(
        placeholder(int),
        Number(1, 4096, whole=True),
        "height and width of streamed images, in pixels; none: 224",
        (PREPARED,),
    ),
    "workers": Key(
        placeholder(int),
        Number(0, 1024, whole=True),
        "processes that decode streamed images; none: one for each core",
        (PREPARED,),
    ),
    "on_devices": Key(
        placeholder(bool),
        Switch(),
        "holds all images on the devices; none: on accelerators, if they fit in a quarter of the memory",
    ),
    "train_examples": Key(placeholder(int), Number(2, 2**31 - 1, whole=True), "limit on the number of training images"),
    "validation_examples": Key(0, Number(0, 2**31 - 1, whole=True), "training images held out for validation"),
    "test_examples": Key(
        0,
        Number(0, 2**31 - 1, whole=True),
        "training images held out for testing, in place of the test split; 0: none",
    ),
    "image_key": Key("image", Text("a name"), "feature of a prepared data set that holds the images", (PREPARED,)),
    "label_key": Key(
        "label",
        Text("a name"),
        "feature of a prepared data set that holds the labels, a `ClassLabel`",
        (PREPARED,),
    ),
    "augment": Key(True, Switch(), "random crops and flips, as usual for the data set; false: none, or central crops"),
    "mean": Key(
        placeholder(str),
        Text("numbers in [0, 1]"),
        "mean of each channel of the pixels: `0.485,0.456,0.406`; none: the data set's",
    ),
    "std": Key(
        placeholder(str), Text("numbers in [0.001, 1]"), "standard deviation of each channel; none: the data set's"
    ),
}
STRONG_VIEW: Group = {
    "n": Key(2, ARGUMENTS["n"], "operations of RandAugment on each image of the strong view", (STRONG,)),
    "m": Key(10.0, ARGUMENTS["m"], "size of the ranges of their strengths; 10: as published", (STRONG,)),
    "cutout": Key(True, ARGUMENTS["cutout"], "fills a square of up to half the width after them", (STRONG,)),
}
