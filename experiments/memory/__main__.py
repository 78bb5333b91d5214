"""Measure the memory of training steps: python -m experiments.memory [--config=FILE.py] [--modules=1,2,4,8,16]

The table has rows for end-to-end training with and without rematerialisation, and for local learning in each form,
context and number of modules K. If the config names a teacher, whose weights are not needed, it also has rows for
distillation. Nothing is trained, and no data are read. The program writes memory.csv, memory.jsonl and memory.png after
every row. The same command resumes a table that was interrupted, and compiles nothing twice.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.command_line import USAGE_STATUS, fail, numbers, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.configs.contradictions import check_config, check_files
from experiments.configs.objectives import AUXILIARIES, PAIRS
from experiments.memory.rows import distillation_methods, has_teacher, names_of_teachers, table_config
from kd_local.choices.local import read_context
from kd_local.choices.steps import TARGETS
from kd_local.errors import unknown
from kd_local.paths import read_folder

_IGNORED = {
    "method": "the table has rows of several methods",
    "seed": "memory does not depend on it",
    "step": "the table has rows of both forms",
    "data.on_devices": "the images are on the devices in the rows contsup_scanned",
    **dict.fromkeys(("epochs", "steps", "data.augment", "data.workers"), "nothing is trained"),
    "teacher.cache": "teachers run in each step",
    "checkpoint.": "nothing is trained",
    "distributed.": "leave it out",
    "end_to_end.remat": "the table has a row of it",
    "local.context": "use --contexts",
    "local.decoder": "use --decoders",
    "local.answer": "nothing is trained",
    "local.memory_budget": "the table shows what fits",
    "mesh.data": "use --devices",
    "mesh.module": "the rows are for one group of devices",
}
"""Keys that the rows set, or that nothing here depends on, each with the way out."""
_CONFIG = define_config()
_MODULES = flags.DEFINE_string(
    "modules", None, "Numbers of modules K. The default is those of 1,2,4,8,16 that the network has blocks for."
)
_CONTEXTS = flags.DEFINE_string("contexts", "R0,E,R1,R1E", "Contexts of local learning.")
_AUXILIARIES = flags.DEFINE_string(
    "auxiliaries", "", f"Auxiliary networks with rows of their own, in each context: {', '.join(AUXILIARIES)}."
)
_PAIRS = flags.DEFINE_string("pairs", "", f"Methods of pairs of modules that have rows: {', '.join(PAIRS)}.")
_DECODERS = flags.DEFINE_bool("decoders", True, "Add rows of local learning with decoders.")
_DISTILLATION = flags.DEFINE_string(
    "distillation",
    None,
    "Methods of distillation. The default is kd,block_kd if the config names a teacher.",
)
_TARGET = flags.DEFINE_string("target", "local", f"Devices to compile for: {', '.join(TARGETS)}.")
_DEVICES = flags.DEFINE_integer("devices", 1, "Number of devices over which the batch is divided.", lower_bound=1)
_MEASURE = flags.DEFINE_bool("measure", None, "Measure real steps too. The default is true for a local target.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the table; by default runs/memory-NETWORK-DATA-batchN-TARGET."
)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        check_given(given_keys(), _IGNORED)
        config, base = _CONFIG.value, table_config(_CONFIG.value)
        modules = None
        if _MODULES.value is not None:
            modules = sorted(numbers("modules", _MODULES.value, example="1,2,4,8,16", lowest=1))
        contexts, methods = _contexts(_CONTEXTS.value), distillation_methods(_DISTILLATION.value, base)
        auxiliaries = _names("auxiliary network", _AUXILIARIES.value, AUXILIARIES)
        pairs = _names("method of pairs", _PAIRS.value, PAIRS)
        if _TARGET.value not in TARGETS:
            raise unknown("target", _TARGET.value, TARGETS)
        if base.batch_size % _DEVICES.value:
            raise ValueError(
                f"a batch of {base.batch_size} cannot be divided among {_DEVICES.value} devices: use another "
                "--devices, or --config.batch_size"
            )
        # Every network has two blocks or more, so the default has 1 and 2.
        check_used(config, _alternatives(modules or [1, 2], contexts, (*pairs, *methods), auxiliaries))
        check_config(base)
        check_files(base, shapes_only=True)
        folder = _default_workdir(base) if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)

    if _TARGET.value.startswith("gpu:"):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the plugin says several times that there is no driver
    from experiments.memory.run import Selection, run  # imports JAX

    selection = Selection(
        modules, contexts, auxiliaries, pairs, methods, _DECODERS.value, _TARGET.value, _DEVICES.value, _MEASURE.value
    )
    run(config, selection, folder)


def _alternatives(
    modules: Sequence[int], contexts: Sequence[str], methods: Sequence[str], auxiliaries: Sequence[str]
) -> Mapping[str, Sequence[Any]]:
    """What the rows set in place of the config's values."""
    return {
        "method": ["contsup", "end_to_end", *methods],
        "local.modules": modules,
        "local.context": sorted({*contexts, "R0"}) if max(modules) > 1 else ["R0"],
        "local.decoder": [False, True] if _DECODERS.value else [False],
        **({"local.auxiliary": ["head", *auxiliaries]} if auxiliaries else {}),
        "local.memory_budget": [None],
        "mesh.data": [_DEVICES.value],
    }


def _contexts(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        read_context(name)
    return names


def _names(noun: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in known:
            raise unknown(noun, name, known)
    return names


def _default_workdir(base: ConfigDict) -> Path:
    words = ["memory", base.network.name, base.data.name, f"batch{base.batch_size}", _TARGET.value.replace(":", "-")]
    if _DEVICES.value > 1:
        words.append(f"{_DEVICES.value}devices")
    if has_teacher(base):
        words.append(names_of_teachers(base))
    return Path("runs") / "-".join(words)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
