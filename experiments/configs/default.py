"""The default run: ContSup on digits. Every key, with its meaning, is in keys.py and in docs/configuration.md.

Command: python -m experiments.train
"""

from ml_collections import ConfigDict

from experiments.configs.keys import default_config


def get_config(options: str = "") -> ConfigDict:
    if options:
        raise ValueError(f"the default config takes no options, but got {options!r}: leave out the part after ':'")
    return default_config()
