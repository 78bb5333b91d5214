"""The flag `--config=FILE.py[:OPTIONS]`, and `--config.KEY=VALUE` for single keys, also from flag files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.checks import read, unknown_key
from experiments.configs.config_file import read_config
from experiments.configs.keys import all_keys
from kd_local.ranges import Switch

HELP = "Config file; its options may follow a colon. The default is experiments/configs/default.py."
DEFAULT_FILE = str(Path(default.__file__))


class ConfigFlag(flags.Flag):
    """The flag. Its value is the config: the file's, with the keys that the command line sets.

    Attributes:
        file: the config file with its options, as they were written.
        texts: the keys that the command line sets, as they were written.
        given: their values.
    """

    file: str = DEFAULT_FILE
    texts: Mapping[str, str] = {}
    given: Mapping[str, Any] = {}

    def load(self, texts: Mapping[str, str]) -> None:
        """Read the file and set these keys.

        Raises:
            ValueError: the file has no name; see also `read_config` and `experiments.configs.checks.read`.
        """
        if self.value == "":
            raise ValueError("--config is '': give a config file, or leave it out")
        self.file, self.texts = self.value or DEFAULT_FILE, texts
        self.given = {name: read(name, text) for name, text in texts.items()}
        config = read_config(self.file)
        set_keys(config, self.given)
        self.value = config


def define_config(help_text: str = HELP) -> flags.FlagHolder[Any]:
    """Define the flag of a program; `experiments.command_line.parse` loads it."""
    return flags.DEFINE_flag(ConfigFlag(flags.ArgumentParser(), None, "config", None, help_text))


def config_flag() -> ConfigFlag | None:
    """The flag of this program; None for a program without config."""
    if "config" not in flags.FLAGS:
        return None
    flag = flags.FLAGS["config"]
    assert isinstance(flag, ConfigFlag)
    return flag


def given_keys() -> Mapping[str, Any]:
    """The keys that the command line sets, and their values."""
    flag = config_flag()
    return {} if flag is None else flag.given


def set_keys(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Set keys by their full names."""
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        (config[group] if group else config)[key] = value


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without those that set single keys, and the texts of these keys.

    Raises:
        ValueError: an unknown key, or a key without a value.
    """
    others: list[str] = []
    texts: dict[str, str] = {}
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*others, argument, *left], texts
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            others.append(argument)
            continue
        negated, name, text = match.groups()
        if name not in all_keys():
            raise unknown_key(name)
        if isinstance(all_keys()[name].values, Switch) and text is None:
            text = "false" if negated else "true"
        elif negated:
            raise ValueError(f"{argument}: only a key that is true or false has --no; use --config.{name}=VALUE")
        elif text is None:
            if not left:
                raise ValueError(f"{argument} has no value: use --config.{name}=VALUE")
            text = left.pop(0)
        texts[name] = text
    return others, texts
