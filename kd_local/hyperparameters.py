"""Hyper-parameters of objectives and auxiliary networks: their ranges, and checks of them.

The range of a hyper-parameter is part of its annotation: `temperature: Temperature = 4.0`, see `kd_local.ranges`.
"""

from dataclasses import fields
from typing import Any, get_type_hints

from kd_local.choices.distillation import check_hyperparameters as check_values
from kd_local.ranges import Number, Range, Switch, Text, Weighted

_OF_TYPE: dict[Any, Range] = {
    float: Number(-1e9, 1e9),
    int: Number(-(10**9), 10**9, whole=True),
    bool: Switch(),
    str: Text("text"),
}


def ranges_of(kind: type) -> dict[str, Range]:
    """The range of each hyper-parameter of a class; without a range in its annotation, that of its type."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        annotated = getattr(hints[field.name], "__metadata__", ())
        range_ = annotated[0] if annotated else _OF_TYPE.get(hints[field.name])
        if range_ is not None:
            found[field.name] = range_
    return found


def weights_of(kind: type) -> dict[str, tuple[str, ...]]:
    """The weights without which a hyper-parameter of a class has no effect, see `kd_local.ranges.Weighted`."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        annotated = getattr(hints[field.name], "__metadata__", ())
        found[field.name] = next((each.weights for each in annotated if isinstance(each, Weighted)), ())
    return found


def check_hyperparameters(of: Any) -> None:
    """Refuse hyper-parameters outside of their ranges, weights of a loss's terms that are all 0, and a hyper-parameter,
    other than its default, of terms that have weight 0.

    Raises:
        ValueError: the first of them, by its name.
    """
    ranges = ranges_of(type(of))
    check_values(ranges, {name: getattr(of, name) for name in ranges})
    defaults = {field.name: field.default for field in fields(of)}
    for name, weights in weights_of(type(of)).items():
        value = getattr(of, name)
        if weights and value != defaults[name] and not any(getattr(of, weight) for weight in weights):
            raise ValueError(
                f"{name} is {value}, but {' and '.join(weights)} {'are' if len(weights) > 1 else 'is'} 0: leave it "
                "out, or use a larger weight"
            )
