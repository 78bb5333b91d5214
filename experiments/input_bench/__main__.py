"""Measure how fast images are read and decoded: python -m experiments.input_bench [--workers=0,1,2] [--size=224]

The program writes JPEGs of 500x375 pixels, ImageNet's average size, and reads them as the training loop does, with each
number of worker processes. The times exclude a warm-up, in which the workers start. The program prints a table and a
line of JSON, and leaves no files.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, fail, numbers, parse
from kd_local.ranges import Number
from kd_local.sizes import shown_bytes

ROUNDS = 5
LIMITS = {
    "images": Number(1, 10_000_000, whole=True, note="more take hours"),
    "size": Number(1, 4096, whole=True, note="as data.image_size"),
    # As many files of about 110 kB are written, 1.1 GB.
    "batch": Number(1, 10_000, whole=True, note="as many files are written"),
}
LARGEST_BATCH = 2**30
"""Bytes of a batch; a few batches for each worker are in memory at once."""

_IMAGES = flags.DEFINE_integer("images", 1000, f"Images to read for each number of workers, in {ROUNDS} rounds.")
_WORKERS = flags.DEFINE_string("workers", "0,1,2", "Numbers of worker processes; 0 reads in the main process.")
_SIZE = flags.DEFINE_integer("size", 224, "Height and width of a crop, in pixels.")
_BATCH = flags.DEFINE_integer("batch", 50, "Number of images in a batch.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        workers = numbers("workers", _WORKERS.value, example="0,1,2", highest=1024)
        check_limits(images=_IMAGES.value, size=_SIZE.value, batch=_BATCH.value)
    except ValueError as error:
        fail(error, USAGE_STATUS)

    from experiments.input_bench.run import run  # imports JAX

    run(workers, images=_IMAGES.value, size=_SIZE.value, batch=_BATCH.value, rounds=ROUNDS)


def check_limits(*, images: int, size: int, batch: int) -> None:
    """Check the flags.

    Raises:
        ValueError: a number is out of range, or a batch is too large for the memory.
    """
    for name, value in (("images", images), ("size", size), ("batch", batch)):
        LIMITS[name].check(f"--{name}", value)
    if (needed := batch * size * size * 3) > LARGEST_BATCH:
        raise ValueError(
            f"a batch of {batch} crops of {size}x{size} has {shown_bytes(needed)}, and several are in memory: use a "
            f"smaller --batch or --size, for {shown_bytes(LARGEST_BATCH)} or less"
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
