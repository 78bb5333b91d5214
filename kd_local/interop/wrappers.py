"""Finds a network's tensors in the dictionaries that training programs save: wrappers, prefixes and additions.

wrappers    an entry of the file that holds the network: `state_dict`, `model`, ...; they may be nested
averages    an entry that holds a moving average of the network: `state_dict_ema`, `model_ema`, ...
prefixes    `module.` (nn.DataParallel), `_orig_mod.` (torch.compile), `model.`, `net.` (Lightning), `encoder_q.` (MoCo)
additions   `total_ops` and `total_params` (thop), `n_averaged` (AveragedModel), a criterion's weights
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Array = TypeVar("Array")

WRAPPERS: tuple[str, ...] = (
    "state_dict", "model_state_dict", "net_state_dict", "model_state", "model", "net", "network", "module", "params"
)  # fmt: skip
AVERAGES: tuple[str, ...] = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "model_ema_state_dict", "net_ema", "params_ema", "ema"
)  # fmt: skip
_ADDED = ("total_ops", "total_params", "n_averaged")
_CRITERIA = ("criterion.", "loss.", "loss_fn.", "train_loss.", "val_loss.")
# Names that may occur next to names with a prefix: those that begin with a text of the first tuple are left out, those
# that begin with a text of the second tuple (the last layer next to a backbone) are kept.
_PREFIXES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "module.": ((), ()),
    "_orig_mod.": ((), ()),
    **dict.fromkeys(("model.", "net.", "network."), (_CRITERIA, ())),
    "student.": (("teacher.",), ()),
    "encoder_q.": (("encoder_k.", "queue"), ()),
    "backbone.": ((), ("fc.", "linear.", "classifier.", "head.", "heads.")),
}


def find_state(saved: Any, is_array: Callable[[Any], bool]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arrays of a network by their names, from the contents of a file.

    Args:
        saved: nested dictionaries, as a training program saves them.
        is_array: returns True if a value is an array.

    Returns:
        `(arrays, notes)`: the arrays with their names in the file, and a sentence for each choice between networks.

    Raises:
        ValueError: there are no arrays by name, or several networks.
    """
    found = dict(_candidates(saved, is_array))
    if not found:
        inside = f"entries {', '.join(map(repr, saved))}" if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"has no named tensors, only {inside}: save a network's state_dict(), alone or as the entry "
            f"{WRAPPERS[0]!r} or {WRAPPERS[1]!r}"
        )
    averages = [place for place in found if not set(place).isdisjoint(AVERAGES)]
    own = [place for place in found if place not in averages] or averages
    if len(own) > 1:
        raise ValueError(
            f"holds several networks, {', '.join(repr('.'.join(place)) for place in own)}: save one of them alone, "
            "torch.save(network.state_dict(), PATH)"
        )
    notes: tuple[str, ...] = ()
    if averages:
        names = [place for place in averages if place != own[0]]
        other = f", not the moving average {'.'.join(names[0])!r}" if names else ", a moving average"
        notes = (f"{'.'.join(own[0])!r} is read{other}",)
    return {name: x for name, x in found[own[0]].items() if isinstance(name, str) and is_array(x)}, notes


def _candidates(
    saved: Any, is_array: Callable[[Any], bool], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yields the dictionaries of named arrays, each with its path in the file.

    If a dictionary has wrappers, only these are searched: its other entries are optimizers, results and settings.
    """
    if not isinstance(saved, Mapping):
        return
    inner = {name: tuple(_candidates(value, is_array, (*place, name))) for name, value in saved.items()
             if isinstance(name, str) and isinstance(value, Mapping)}  # fmt: skip
    inner = {name: candidates for name, candidates in inner.items() if candidates}
    wrappers = [name for name in inner if name in WRAPPERS or name in AVERAGES]
    own = [name for name, value in saved.items() if isinstance(name, str) and is_array(value)]
    # Arrays next to other dictionaries of arrays, and without a dot in their names, are results such as an accuracy.
    if own and not wrappers and (not inner or any("." in name for name in own)):
        yield place, saved
        return
    for name in wrappers or inner:
        yield from inner[name]


def plain_names(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays by the names of their layers, without prefixes of wrapping modules and without additions.

    A prefix is removed if all names have it, except names that the programs with this prefix write next to it.

    Returns:
        `(arrays, notes)`: the arrays, and a sentence for each network that is left out.
    """
    arrays = {name: x for name, x in arrays.items() if name.rpartition(".")[2] not in _ADDED}
    notes: tuple[str, ...] = ()
    while (prefix := _prefix(arrays)) is not None:
        left_out, kept = _PREFIXES[prefix]
        dropped = sorted({text for name in arrays for text in left_out if name.startswith(text)})
        if networks := [text for text in dropped if text in ("teacher.", "encoder_k.")]:
            notes = (*notes, f"{prefix!r} is read, not {networks[0]!r}")
        arrays = {
            name.removeprefix(prefix): x
            for name, x in arrays.items()
            if name.startswith(prefix) or (kept and name.startswith(kept))
        }
        if prefix == "backbone.":
            arrays = {
                f"fc.{name.removeprefix('head.fc.')}" if name.startswith("head.fc.") else name: x
                for name, x in arrays.items()
            }
    return arrays, notes


def _prefix(names: Mapping[str, Any]) -> str | None:
    """The prefix of the names; None if they have none."""
    for prefix, beside in _PREFIXES.items():
        others = (*beside[0], *beside[1])
        without = [name for name in names if not name.startswith(prefix)]
        if len(without) < len(names) and all(others and name.startswith(others) for name in without):
            return prefix
    return None
