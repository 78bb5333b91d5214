"""Inspects the pickles in PyTorch's files without unpickling them."""

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch.save's older format."""
_FIRST_PICKLES = 4  # of the older format: the magic number, the protocol, the system, and what was saved

_DICTIONARIES = frozenset({"collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode", "addict.addict.Dict"})
_NUMPY = ("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy._core.multiarray")
_SETTINGS = frozenset(
    {
        "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.date", "datetime.timedelta",
        *(f"pathlib{module}.{kind}" for module in ("", "._local")
          for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
        *(f"builtins.{kind}" for kind in ("list", "dict", "tuple", "int", "float", "str", "bool")),
    }
)  # fmt: skip
_UNPICKLED = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {f"builtins.{kind}" for kind in ("set", "complex", "bytearray")}
)
"""The types and functions that PyTorch's restricted unpickler allows besides tensors."""


def is_harmless(name: str) -> bool:
    """True if objects of this type are skipped or read as plain containers.

    They are settings and results that programs save next to a network.
    """
    return (
        name in _SETTINGS or name in _DICTIONARIES or name == "collections.deque" or name.rpartition(".")[0] in _NUMPY
    )


def is_foreign(name: str) -> bool:
    """True if a type or function is not PyTorch's, not harmless, and not allowed by the restricted unpickler."""
    return name.partition(".")[0] != "torch" and name not in _UNPICKLED and not is_harmless(name)


def placeholder(name: str) -> type:
    """A type that replaces a harmless type, which is not imported.

    Its objects are plain containers, or ignore the values that they are created from.
    """
    module, _, last = name.rpartition(".")
    kind = _Dictionary if name in _DICTIONARIES else _List if name == "collections.deque" else _Ignored
    return type(last, (kind,), {"__module__": module, "__qualname__": last})


class _Ignored:
    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dictionary:
    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List:
    def __new__(cls, *_: Any) -> Any:
        return []


def pickled(path: Path) -> tuple[tuple[str, ...], int]:
    """The names of all types and functions in the pickle of a file of PyTorch, and the pickle's protocol."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            return _globals_of(stream, _FIRST_PICKLES)
    with zipfile.ZipFile(path) as archive:
        inside = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        with archive.open(inside) as stream:
            return _globals_of(stream, 1)


def _globals_of(stream: IO[bytes], pickles: int) -> tuple[tuple[str, ...], int]:
    names: dict[str, None] = {}
    protocol, words = 0, ["", ""]
    try:
        for operation, argument in _operations(stream, pickles):
            if operation == "PROTO":
                protocol = int(argument)
            elif operation == "GLOBAL":
                names[_today(str(argument).replace(" ", ".", 1))] = None
            elif operation == "STACK_GLOBAL":
                names[_today(".".join(words))] = None
            elif isinstance(argument, str):
                words = [words[1], argument]
    except ValueError:
        pass  # the rest of the pickle is damaged
    return tuple(names), protocol


def _today(name: str) -> str:
    """A type's name in Python 3: pickles of protocol 2 have those of Python 2."""
    return name.replace("__builtin__.", "builtins.", 1) if name.startswith("__builtin__.") else name


def _operations(stream: IO[bytes], pickles: int) -> Iterator[tuple[str, Any]]:
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(stream):
            yield operation.name, argument


def is_older_format(path: Path) -> bool:
    """True if a file that starts like a pickle has torch.save's older format."""
    with path.open("rb") as stream:
        try:
            return any(argument == MAGIC for _, argument in _operations(stream, 1))
        except ValueError:
            return False
