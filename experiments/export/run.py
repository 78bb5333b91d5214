"""Reads the network of a run, and writes it in several forms with a card."""

import os
import secrets
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.export.card import card, metadata
from experiments.export.forms import CARD, FORMS
from experiments.export.network import Exported, network_of
from experiments.from_config.weights import by_name
from experiments.tables import say
from kd_local.files import replace_text
from kd_local.interop import network_to_torch, write_orbax, write_safetensors, write_state_dict


def run(workdir: Path, output: Path, forms: Sequence[str] | None, *, command: str) -> None:
    """Writes the network of a run. An error ends the program.

    Args:
        workdir: the folder of the run.
        output: the folder of the result, which is new or empty.
        forms: of `FORMS`; None for all that the network has.
        command: the command that started the program, for the card.
    """
    console = Console()
    try:
        exported = network_of(workdir)
        if exported.code_base is None and forms is not None and "torch" in forms:
            raise ValueError(
                f"no code base in PyTorch has {exported.name}, so there is no state dict of it: leave torch out of "
                "--forms"
            )
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)
    chosen = [form for form in forms or FORMS if form != "torch" or exported.code_base is not None]
    ENDING.arm()
    # A part of a folder is never seen under its name.
    unfinished = output.with_name(f".{output.name}.{secrets.token_hex(8)}.tmp")
    clean = partial(shutil.rmtree, unfinished, ignore_errors=True)
    ENDING.at_end(clean)
    try:
        unfinished.mkdir(parents=True)
        _write(exported, unfinished, chosen)
        replace_text(unfinished / CARD, card(exported, chosen, output, command))
        os.replace(unfinished, output)
    except OSError as error:
        fail(f"output {str(output)!r} cannot be written: {error.strerror or error}; use another --output", 1)
    finally:
        clean()
    if exported.code_base is None:
        say(console, f"note: no code base in PyTorch has {exported.name}: the names are those of this package")
    for name in (*(FORMS[form] for form in chosen), CARD):
        say(console, f"{output / name}")


def _write(exported: Exported, folder: Path, forms: Sequence[str]) -> None:
    named = exported.code_base is not None
    arrays = network_to_torch(exported.network, exported.variables) if named else by_name(exported.variables)
    if "orbax" in forms:
        write_orbax(folder / FORMS["orbax"], exported.variables)
    if "safetensors" in forms:
        write_safetensors(folder / FORMS["safetensors"], arrays, metadata(exported))
    if "torch" in forms:
        write_state_dict(folder / FORMS["torch"], arrays)
