"""Write a trained network for other programs: python -m experiments.export --workdir=RUN --output=DIR [--forms=...]

RUN is the folder of a run that has ended, of a method whose deployed network is a network alone: not ContSup with
contexts, not SimKD. DIR gets

  orbax/               an orbax checkpoint, for JAX
  network.safetensors  the tensors with the names of torchvision or mdistiller, for PyTorch and others
  network.pth          the same as a state dict, for torch.load; PyTorch is not needed to write it
  README.md            a card: network, data, accuracy, and commands that load the network

No code base in PyTorch has the transformers without a class token, such as vit_ti16: their network.safetensors has the
names of this package, and there is no network.pth.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

import shlex
import sys

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.export.forms import FORMS, read_forms
from kd_local.paths import read_existing, read_folder

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the result, which must be new or empty.")
_FORMS = flags.DEFINE_string(
    "forms", None, f"Forms to write, of {','.join(FORMS)}. The default is all that the network has."
)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        if _WORKDIR.value is None:
            raise ValueError("--workdir is not set: give the folder of a run that has ended")
        if _OUTPUT.value is None:
            raise ValueError("--output is not set: give a new folder, such as --output=exported")
        forms = None if _FORMS.value is None else read_forms(_FORMS.value)
        workdir = read_existing(_WORKDIR.value, "workdir")
        output = read_folder(_OUTPUT.value, "output")
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"output {str(output)!r} is not empty: give a new folder, or empty it")
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)

    from experiments.export.run import run  # imports JAX

    run(workdir, output, forms, command=shlex.join(["python", "-m", "experiments.export", *sys.argv[1:]]))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
