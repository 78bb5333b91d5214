"""The folder of a run: its name, and the config it belongs to."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_local.files import replace_text

CONFIG = "config.json"
# Where a run is, how fast and how far it goes, not what a step of it computes: they may change on the way.
_FREE = ("data.data_dir", "data.workers", "mesh.", "checkpoint.", "distributed.", "steps")


def default_workdir(config: ConfigDict) -> Path:
    """`runs/` and a name that tells what the run is, with a digest of the whole config: one config, one folder."""
    values = _binding(_flat(config.to_dict()))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    words = [config.method, config.network.name, config.data.name]
    if config.method == "contsup":
        words += [f"k{config.local.modules}", config.local.context]
    return Path("runs") / "-".join([*words, f"seed{config.seed}", digest])


def claim(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and write the config into it, or find there the same config.

    Raises:
        ValueError: the folder belongs to a run of another config, or cannot be used.
    """
    path = workdir / CONFIG
    ours = _flat(json.loads(json.dumps(config.to_dict())))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            theirs = _flat(json.loads(path.read_text()))
            old, new = _binding(theirs), _binding(ours)
            differences = [
                f"  {key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} now"
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key)
            ]
            if differences:
                raise ValueError(
                    f"workdir {str(workdir)!r} holds a run of another config:\n"
                    + "\n".join(differences)
                    + "\nuse another --workdir, or remove that folder"
                )
        replace_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"workdir {str(workdir)!r} cannot be used: {error.strerror}; use another --workdir") from None
    except json.JSONDecodeError:
        raise ValueError(f"{str(path)!r} is damaged: restore it, or use another --workdir") from None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _binding(flat: dict[str, Any]) -> dict[str, Any]:
    binding = {key: value for key, value in flat.items() if not key.startswith(_FREE)}
    # With a cache the teacher is no part of the state; where the cache lies is free.
    if binding.pop("teacher.cache", None) is not None:
        binding["teacher.cache"] = "a folder"
    return binding
