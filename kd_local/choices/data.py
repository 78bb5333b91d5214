"""The names of data sets, and the folders in which tensorflow-datasets prepares them."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from kd_local.errors import unknown
from kd_local.ranges import Number, Range, Switch

INCLUDED = "digits"
"""The data set that is part of the package."""
DATASETS: tuple[str, ...] = ("cifar10", "cifar100", "digits", "imagenet2012", "stl10", "svhn_cropped")
"""The known data sets. Any other name is that of a folder."""
FORMAT = "array_record"
STRONG_VIEW: Mapping[str, Range] = {
    "n": Number(1, 16, whole=True, example=2),
    "m": Number(0, 10, open_low=True, example=10),
    "cutout": Switch(),
}
"""Of the arguments of `kd_local.data.RandAugment`."""


def default_folder() -> Path:
    """The folder of tensorflow-datasets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def folder_of(name: str, data_dir: str | Path | None) -> Path:
    """The folder of all versions of a data set."""
    return (default_folder() if data_dir is None else Path(data_dir).expanduser()) / name


def versions(folder: Path) -> list[Path]:
    """The folders of the prepared versions of a data set."""
    return [
        path.parent for path in folder.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]


def is_there(name: str, data_dir: str | Path | None = None) -> bool:
    """True if the data set is prepared, in any format."""
    if data_dir is None and find_spec("tensorflow_datasets") is None:
        return False
    return bool(versions(folder_of(name, data_dir)))


def how_to_prepare(name: str, data_dir: Path) -> str:
    """The command that prepares a data set."""
    # To prepare data needs tensorflow and packages that tensorflow-datasets does not declare. To read them does not.
    return (
        "prepare it once, on any machine with a network and pip install tensorflow "
        "tensorflow-datasets array_record importlib_resources scipy: "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, file_format='{FORMAT}')"
        '.download_and_prepare()"'
    )


def missing(name: str, data_dir: str | Path | None) -> FileNotFoundError:
    """The error for a data set that is not prepared. The caller raises it."""
    return FileNotFoundError(
        f"no prepared {name} in {folder_of(name, data_dir)}: give the data_dir that contains {name}/, or "
        + how_to_prepare(name, folder_of("", data_dir))
    )


def check_name(name: str, data_dir: str | Path | None) -> None:
    """Checks that there is a data set of this name: a known one, or a folder.

    Raises:
        ValueError: there is none, or a `data_dir` is given for `digits`.
    """
    if name == INCLUDED and data_dir is not None:
        raise ValueError(f"data_dir {str(data_dir)!r}: {INCLUDED} is part of the package, leave data_dir out")
    if name in DATASETS or is_there(name, data_dir):
        return
    error = unknown("dataset", name, DATASETS)
    if data_dir is None:
        raise error
    raise ValueError(f"{error}; and there is no prepared data set in {Path(data_dir) / name}")
