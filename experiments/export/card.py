"""The card of a network that is written: a page in Markdown for those who use the network elsewhere."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import kd_local
from experiments.configs.checks import default_values, flat_values, unused
from experiments.configs.description import shown
from experiments.export.forms import FORMS
from experiments.export.network import Exported
from experiments.folders.identity import VERSION
from experiments.folders.workdirs import recorded_config

_OF_TRAINING = ("data.augment", "data.on_devices", "data.mean", "data.std")
"""Keys of data that an evaluation does not have, or has from elsewhere."""
_LOADED = {
    "orbax": "`orbax.checkpoint.StandardCheckpointer().restore(FOLDER)`",
    "safetensors": "`network.load_state_dict(safetensors.torch.load_file(FILE))`",
    "torch": "`network.load_state_dict(torch.load(FILE, weights_only=True))`",
}


def metadata(exported: Exported) -> dict[str, str]:
    """The texts in the header of a .safetensors file."""
    texts = {"network": exported.name, "dataset": exported.run.config.data.name, **_normalisation(exported)}
    # timm and transformers read `format`.
    return texts | ({} if exported.code_base is None else {"format": "pt", "code_base": exported.code_base})


def card(exported: Exported, forms: Sequence[str], output: Path, command: str) -> str:
    """The text of the card.

    Args:
        exported: the network.
        forms: the forms in which it is written, of `FORMS`.
        output: the folder that has them.
        command: the command that wrote them.
    """
    config = exported.run.config
    files = {f"`{FORMS[form]}`": _contents(exported, form) for form in forms}
    lines = [
        f"# {exported.name}, trained on {config.data.name} with {config.method}",
        *_table(_facts(exported)),
        "## Files",
        *_table(files),
        *_notes(exported),
        "## Commands",
        "In kd_local the network is a teacher, starts another run, or is evaluated with",
        "\n".join(f"    {line}" for line in _uses(exported, output / FORMS[forms[0]])),
        "The run and this folder were made with",
        f"    {training_command(exported)}\n    {command}",
    ]
    return "\n\n".join(lines) + "\n"


def training_command(exported: Exported) -> str:
    """The command that trains the run: the keys that differ from the defaults, and have an effect."""
    return _command("train", {f"config.{key}": text for key, text in _changed(exported).items()})


def _facts(exported: Exported) -> dict[str, str]:
    summary, config = exported.summary, exported.run.config
    version = recorded_config(exported.run.folder).get(VERSION, "of an earlier version")
    pixels = _normalisation(exported)
    accuracies = {
        f"{split} accuracy": f"{100 * summary[f'{split}_accuracy']:.2f} %"
        for split in ("test", "validation")
        if f"{split}_accuracy" in summary
    }
    return {
        "network": f"{exported.name}, {summary['parameters_deployed']:,} parameters, "
        f"{summary['multiply_adds']:,} multiply-adds an image",
        "classes": str(exported.classes),
        "images": _shape(exported),
        "pixels": f"in [0, 1], minus the mean {pixels['mean']}, divided by the standard deviation {pixels['std']}",
        "data": _data(exported),
        "method": config.method,
        **_teacher(exported),
        **accuracies,
        "training": f"epochs: {shown(summary['epochs'])}, steps: {summary['steps']:,}, seed: {summary['seed']}, "
        f"computed in {config.network.dtype}",
        "versions": f"trained with kd_local {version} and JAX {summary['jax']}, written with kd_local "
        f"{kd_local.__version__} and JAX {jax.__version__}",
    }


def _changed(exported: Exported) -> dict[str, str]:
    """The keys of the run that differ from the defaults and have an effect, as a command line takes them."""
    values, defaults = flat_values(exported.run.config), default_values()
    ignored = unused(values)
    return {key: shown(value) for key, value in values.items() if value != defaults[key] and key not in ignored}


def _uses(exported: Exported, path: Path) -> list[str]:
    """The flags of a teacher, those of start weights, and the command of an evaluation."""
    changed, pixels, weights = _changed(exported), _normalisation(exported), {"weights": str(path)}
    shortcut = {"shortcut": changed["network.shortcut"]} if "network.shortcut" in changed else {}
    teacher = {"network": exported.name, **shortcut, **weights, **pixels}
    student = {f"network.{name}": text for name, text in {"name": exported.name, **shortcut}.items()}
    normalised = {f"data.{name}": text for name, text in pixels.items()}
    others = {key: text for key, text in changed.items() if key.startswith("data.") and key not in _OF_TRAINING}
    evaluated = {"data.name": exported.run.config.data.name, **others, **normalised, **student}
    if "network.dtype" in changed:
        evaluated["network.dtype"] = changed["network.dtype"]
    start = {**student, "network.weights": str(path), **normalised}
    return [
        _flags({f"config.teacher.{name}": text for name, text in teacher.items()}),
        _flags({f"config.{key}": text for key, text in start.items()}),
        _command("evaluate", {**weights, **{f"config.{key}": text for key, text in evaluated.items()}}),
    ]


def _command(program: str, values: Mapping[str, str]) -> str:
    return f"python -m experiments.{program} {_flags(values)}".strip()


def _flags(values: Mapping[str, str]) -> str:
    return shlex.join(f"--{name}={value}" for name, value in values.items())


def _table(rows: Mapping[str, str]) -> list[str]:
    cells = (f"| {name} | {text} |" for name, text in rows.items())
    return ["\n".join(["| | |", "| --- | --- |", *cells])]


def _contents(exported: Exported, form: str) -> str:
    base = exported.code_base
    if form == "orbax":
        return f"an orbax checkpoint of `params` and `batch_stats`, by block: {_LOADED[form]}"
    if base is None:
        return "tensors by the names of kd_local: collection, block and path, joined by `:`"
    kind = "a state dict" if form == "torch" else "tensors"
    return f"{kind} with the names and layouts of {base}: {_LOADED[form]}"


def _notes(exported: Exported) -> list[str]:
    if exported.code_base is None:
        return []
    return [
        "In PyTorch images are (batch, channels, height, width). The files lack `num_batches_tracked`, which "
        "`load_state_dict` does not need."
    ]


def _normalisation(exported: Exported) -> dict[str, str]:
    """Mean and standard deviation of each channel, on the scale 0 to 1, as the config keys take them."""
    names = ("mean", "std")
    return {name: ",".join(repr(number / 255) for number in numbers)
            for name, numbers in zip(names, exported.run.normalisation, strict=True)}  # fmt: skip


def _shape(exported: Exported) -> str:
    shape = exported.run.facts.get("images.shape")
    if shape is None:  # a run of an earlier version
        return f"channels: {len(exported.run.normalisation[0])}"
    return f"{' x '.join(map(str, shape))} (height, width, channels)"


def _data(exported: Exported) -> str:
    names = {"images.train": "training images", "images.test": "test images"}
    facts = exported.run.facts
    counts = [f"{facts[key]:,} {name}" for key, name in names.items() if key in facts]
    return ", ".join([exported.run.config.data.name, *counts])


def _teacher(exported: Exported) -> dict[str, str]:
    summary, settings = exported.summary, exported.run.config.teacher
    if "teacher_accuracy" not in summary:
        return {}
    return {
        "teacher": f"{', '.join(summary.get('teachers', ()))} ({settings.weights})".strip(),
        "teacher's accuracy": f"{100 * summary['teacher_accuracy']:.2f} %; it agrees with the student on "
        f"{100 * summary['agreement']:.2f} % of the test images",
    }
