"""Run the notebooks and store their outputs: python -m experiments.notebooks [NAME ...]

The names are those of files in experiments/notebooks; by default all. The program writes a digest of the code cells to
the metadata, so that a test finds outputs that belong to older code.
"""

import sys
from pathlib import Path

from experiments.command_line import HELP_FLAGS, USAGE_STATUS, fail
from kd_local.errors import unknown

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb")))


def main(names: list[str]) -> None:
    if HELP_FLAGS & set(names):
        print(f"{__doc__}\nNotebooks: {', '.join(NAMES)}")
        return
    for name in names:
        if name not in NAMES:
            fail(unknown("notebook", name, NAMES), USAGE_STATUS)

    from experiments.notebooks.run import run  # imports Jupyter's packages

    for name in names or NAMES:
        run(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
