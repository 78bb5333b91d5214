"""The kinds of operations of an executable, from the text of its HLO code or, failing that, from their names."""

import re
from collections.abc import Mapping

CONVOLUTIONS, PRODUCTS, REDUCTIONS, COPIES, ELEMENTWISE, OTHERS = KINDS = (
    "convolutions",
    "matrix products",
    "reductions",
    "copies and layouts",
    "elementwise",
    "others",
)
"""A fusion has the first of these kinds that one of its instructions has, but copies only if nothing is computed."""

CONTAINERS = ("while", "conditional", "call")
"""Their time is that of the operations in them."""

_OPCODES: Mapping[str, str] = {
    "convolution": CONVOLUTIONS,
    "dot": PRODUCTS,
    **dict.fromkeys(("reduce", "reduce-window", "select-and-scatter", "scatter", "sort"), REDUCTIONS),
    **dict.fromkeys(
        ("copy", "copy-start", "copy-done", "transpose", "reshape", "broadcast", "pad", "slice", "concatenate",
         "dynamic-slice", "dynamic-update-slice", "gather", "reverse"), COPIES
    ),
    **dict.fromkeys(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"), ""),
}  # fmt: skip
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"(?:^| )([a-z][a-z0-9\-]*)\(")
_LAYOUT = re.compile(r"nchwtonhwc|nhwctonchw|converttensor|transpose|copy|memcpy|memset", re.IGNORECASE)
_NAMES = (
    (CONVOLUTIONS, re.compile(r"conv(?!ert)|cudnn|fprop|dgrad|wgrad|winograd", re.IGNORECASE)),
    (PRODUCTS, re.compile(r"gemm|gemv|cublas|^dot|_dot", re.IGNORECASE)),
    (REDUCTIONS, re.compile(r"reduce|reduction|scatter", re.IGNORECASE)),
    (COPIES, _LAYOUT),
    (ELEMENTWISE, re.compile(r"fusion|add|multiply|subtract|divide|select|maximum|compare|convert", re.IGNORECASE)),
)


def operation_kinds(text: str) -> dict[str, str]:
    """The kind of each instruction in the HLO text of an executable, by its name. Containers have the kind "".

    Args:
        text: `jax.stages.Compiled.as_text()`.
    """
    found: dict[str, str] = {}
    fusions: dict[str, str] = {}
    computations: dict[str, list[str]] = {"": []}
    inside = ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            inside = heading[1]
            computations[inside] = []
        elif instruction := _INSTRUCTION.match(line):
            name, rest = instruction.groups()
            opcode = _OPCODE.search(rest)
            called = re.search(r"calls=%?([\w.\-]+)", rest)
            if opcode is not None and opcode[1] == "fusion" and called is not None:
                fusions[name] = called[1]
                continue
            found[name] = _kind_of(opcode[1] if opcode else "", rest)
            computations[inside].append(found[name])
    for name, computation in fusions.items():
        found[name] = _strongest(computations.get(computation, []))
    return found


def kind_of_event(name: str, operation: str, kinds: Mapping[str, str]) -> str:
    """The kind of an event of a trace; "" for a container.

    Args:
        name: the event's name: that of the operation or, on a GPU, of the kernel.
        operation: the name of the operation that it is a part of; may be empty.
        kinds: the kinds of the executable's operations by name.
    """
    if name != operation and _LAYOUT.search(name):  # a kernel that changes the layout for a convolution
        return COPIES
    if operation in kinds:
        return kinds[operation]
    text = operation or name
    if text.split(".")[0] in CONTAINERS:
        return ""
    return next((kind for kind, pattern in _NAMES if pattern.search(text)), OTHERS)


def _kind_of(opcode: str, rest: str) -> str:
    if opcode in CONTAINERS:
        return ""
    if opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        return next((kind for kind, pattern in _NAMES if target and pattern.search(target[1])), OTHERS)
    return _OPCODES.get(opcode, ELEMENTWISE)


def _strongest(kinds: list[str]) -> str:
    """The kind of a fusion of instructions of these kinds."""
    order = (CONVOLUTIONS, PRODUCTS, REDUCTIONS, ELEMENTWISE, OTHERS, COPIES)
    return next((kind for kind in order if kind in kinds), COPIES)
