"""Text files that a killed process leaves whole: JSON lines and replaced text."""

import json
import os
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one object per line; an empty list if there is no file.

    Lines without a JSON object are skipped: a process that is killed while it appends leaves an incomplete line.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old text or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
