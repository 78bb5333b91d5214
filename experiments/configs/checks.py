"""Checks of a config by the description of its keys: names, ranges, and values that would be ignored."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.description import Use, Values, shown
from experiments.configs.keys import all_keys, default_config

_NEAREST = 5
_ELSEWHERE = {
    **dict.fromkeys(("model", "arch", "backbone", "student"), "network.name"),
    **dict.fromkeys(("dataset", "data_name"), "data.name"),
    **dict.fromkeys(("k", "num_modules", "n_modules"), "local.modules"),
}
"""Keys by their names in other programs, where these are spelt in another way."""
_OPEN: Mapping[str, tuple[Any, ...]] = {}


def unknown_key(name: str) -> ValueError:
    """The error for a key that does not exist; it names the nearest keys. The caller raises it."""
    keys = list(all_keys())
    members = [key for key in keys if key.startswith(f"{name}.")]
    if members:
        more = f", or another of its {len(members)} keys" if len(members) > 2 * _NEAREST else ""
        return ValueError(f"config key {name!r} is a group: set one of {', '.join(members[: 2 * _NEAREST])}{more}")
    near = sorted(keys, key=lambda key: -_likeness(name, key))
    same = _ELSEWHERE.get(name.rpartition(".")[2].lower())
    near = [*([same] if same else []), *(key for key in near if key != same)][:_NEAREST]
    return ValueError(f"unknown config key {name!r}: the nearest are {', '.join(near)}; --help lists all")


def read(name: str, text: str) -> Any:
    """The value of a key that a text of the command line gives.

    Raises:
        ValueError: there is no such key, or the value is outside of its range.
    """
    if name not in all_keys():
        raise unknown_key(name)
    return all_keys()[name].read(name, text)


def flat_values(config: ConfigDict) -> dict[str, Any]:
    """The values of a config by their full names."""
    return dict(_flat(config.to_dict()))


@cache
def default_values() -> Values:
    """The defaults of all keys by their full names."""
    return MappingProxyType(flat_values(default_config()))


def check_values(config: ConfigDict) -> None:
    """Checks that a config has every key and no other, and that each value is in its range.

    Raises:
        ValueError: a key is unknown or missing, or a value is out of range; the error names the first one.
    """
    values = flat_values(config)
    for name in values:
        if name not in all_keys():
            raise unknown_key(name)
    if missing := [name for name in all_keys() if name not in values]:
        more = f" and {len(missing) - _NEAREST} more" if len(missing) > _NEAREST else ""
        raise ValueError(
            f"the config has no {', '.join(missing[:_NEAREST])}{more}: start from "
            "experiments.configs.default.get_config()"
        )
    for name, key in all_keys().items():
        key.check(name, values[name])


def unused(values: Values, alternatives: Mapping[str, Sequence[Any]] = _OPEN) -> dict[str, Use]:
    """The keys that have no effect with these values, each with the condition that is not met.

    Args:
        values: of all keys.
        alternatives: the values that a program sets itself in place of these, by key: a key is used if it is with any.
    """
    cases = [
        {**values, **dict(zip(alternatives, case, strict=True))} for case in itertools.product(*alternatives.values())
    ]
    found = {}
    for name, key in all_keys().items():
        if not any(all(use.holds(case) for use in key.uses) for case in cases):
            found[name] = next(use for use in key.uses if not all(use.holds(case) for case in cases))
    return found


def check_used(config: ConfigDict, alternatives: Mapping[str, Sequence[Any]] = _OPEN) -> None:
    """Checks that every key that differs from its default has an effect.

    Raises:
        ValueError: the keys that would be ignored, each with what uses it.
    """
    values, defaults = flat_values(config), default_values()
    ignored = {
        name: use for name, use in unused(values, alternatives).items() if not _equal(values[name], defaults[name])
    }
    if not ignored:
        return
    each = "; ".join(
        f"{name} is {shown(values[name])}, which has an effect only with {use.text}" for name, use in ignored.items()
    )
    out = " ".join(f"--config.{name}={shown(defaults[name])}" for name in ignored)
    raise ValueError(f"{each}: leave {'it' if len(ignored) == 1 else 'them'} out, or set the default, {out}")


def check_given(given: Mapping[str, Any], ignored: Mapping[str, str]) -> None:
    """Check that the command line sets no key that a program does not use.

    Args:
        given: the keys that the command line sets.
        ignored: the way out by key, or by the start of keys, such as `optimizer.`.

    Raises:
        ValueError: the first of these keys.
    """
    for name in given:
        for start, way_out in ignored.items():
            if name == start or (start.endswith(".") and name.startswith(start)):
                raise ValueError(f"--config.{name}: this program does not use it; {way_out}")


def _equal(one: Any, other: Any) -> bool:
    return (tuple(one) if isinstance(one, list) else one) == other


def _likeness(name: str, key: str) -> float:
    """How near two keys are: by spelling, by that of their last words, and by initials, such as lr."""
    last, own = name.rpartition(".")[2].lower(), key.rpartition(".")[2]
    initials = "".join(word[:1] for word in own.split("_"))
    ratio = difflib.SequenceMatcher(None, name.lower(), key).ratio()
    words = difflib.SequenceMatcher(None, last, own).ratio()
    same_group = name.rpartition(".")[0] == key.rpartition(".")[0]
    return max(ratio, words) + 0.3 * same_group + (0.5 if len(last) > 1 and last == initials else 0)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
