"""Measure how fast images are read and decoded: python -m experiments.input_bench [--workers=0,1,2] [--size=224]

The program writes JPEGs of 500x375 pixels, ImageNet's average size, and reads them as the training loop does, with each
number of worker processes. The times exclude a warm-up, in which the workers start. The program prints a table and a
line of JSON, and leaves no files.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # the imports below take seconds

import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail, numbers, parse
from experiments.tables import terminal_table
from kd_local.data import StreamedSplit
from kd_local.data.prepared import PreparedSplit, find
from kd_local.ranges import Number
from kd_local.sizes import shown_bytes

WIDTH, HEIGHT = 500, 375
DISTINCT = 32
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


@dataclass(frozen=True)
class Speed:
    """The speed with one number of workers.

    Attributes:
        workers: number of processes; 0 is the main process.
        images: number of images in all rounds.
        images_per_second: images per second of elapsed time, mean over rounds.
        spread: standard deviation of `images_per_second`.
        images_per_core_second: images per second of processor time of the decoding processes.
    """

    workers: int
    images: int
    rounds: int
    images_per_second: float
    spread: float
    images_per_core_second: float


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        workers = numbers("workers", _WORKERS.value, example="0,1,2", highest=1024)
        check_limits(images=_IMAGES.value, size=_SIZE.value, batch=_BATCH.value)
        with tempfile.TemporaryDirectory() as folder:
            ENDING.at_end(partial(shutil.rmtree, folder, ignore_errors=True))
            prepared = prepare(Path(folder), max(_BATCH.value, DISTINCT))
            speeds = [measure(prepared, count, _IMAGES.value, _SIZE.value, _BATCH.value) for count in workers]
    except (ValueError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    _report(speeds)


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


def prepare(folder: Path, count: int) -> PreparedSplit:
    """A training split of `count` JPEGs with `DISTINCT` contents."""
    import tensorflow_datasets as tfds

    def generate() -> Iterator[tuple[int, dict[str, Any]]]:
        files = [_jpeg(seed) for seed in range(min(count, DISTINCT))]
        for index in range(count):
            image = io.BytesIO(files[index % DISTINCT])
            yield index, {"image": image, "label": index % 1000, "file_name": f"{index}.JPEG"}

    tfds.disable_progress_bar()
    # The builder prints to standard output, and it leaves a temporary folder.
    usual, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder("imagenet2012", data_dir=folder, file_format="array_record")
            builder._split_generators = lambda *_, **__: {"train": generate()}
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    finally:
        tempfile.tempdir = usual
    return PreparedSplit(find("imagenet2012", folder), "train")


def _jpeg(seed: int) -> bytes:
    """An encoded image with structure at several scales, of about 110 kB, the average size of ImageNet's files."""
    random = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3))
    for width, share in ((2, 3 / 7), (8, 2 / 7), (64, 2 / 7)):
        noise = random.integers(0, 256, (HEIGHT // width + 1, WIDTH // width + 1, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * share
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=92)
    return file.getvalue()


def measure(prepared: PreparedSplit, workers: int, images: int, size: int, batch: int) -> Speed:
    """The speed at which batches arrive after a warm-up."""
    split = StreamedSplit(prepared, image_size=size, workers=workers)
    batch = min(batch, len(split))
    each = max(1, images // ROUNDS // batch)
    warm_up = 1 + 4 * workers  # more batches than are buffered, so that reading is then as fast as decoding
    rates, busy = [], 0.0
    with closing(split.training_batches(seed=0, batch_size=batch)) as batches:
        taken = sum(1 for _ in islice(batches, warm_up))
        for _ in range(ROUNDS):
            started, busy_before = time.perf_counter(), _busy_seconds(workers)
            counted = sum(len(images) for _, _, images, _ in islice(batches, each))
            rates.append(counted / (time.perf_counter() - started))
            busy += _busy_seconds(workers) - busy_before
            taken += each
            assert counted <= each * batch
        step, *_ = next(batches)
        assert step == taken
    total = ROUNDS * each * batch
    return Speed(workers, total, ROUNDS, mean(rates), stdev(rates), total / busy)


def _busy_seconds(workers: int) -> float:
    """The processor time that the decoding processes have used."""
    if not workers:
        return time.process_time()
    seconds = 0.0
    for child in multiprocessing.active_children():
        # The fields after the name, which may contain any character. The first of them is field 3.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _report(speeds: list[Speed]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=100)
    columns = {
        "workers": [str(speed.workers) for speed in speeds],
        "images / s": [f"{speed.images_per_second:,.0f}" for speed in speeds],
        "spread": [f"{speed.spread:,.0f}" for speed in speeds],
        "images / s and core": [f"{speed.images_per_core_second:,.0f}" for speed in speeds],
    }
    title = f"JPEGs of {WIDTH}x{HEIGHT} to crops of {_SIZE.value}x{_SIZE.value}, batches of {_BATCH.value}"
    console.print(terminal_table(columns, title=title))
    record = {
        "size": _SIZE.value,
        "batch": _BATCH.value,
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("grain", "pillow", "array_record")},
        "speeds": [asdict(speed) for speed in speeds],
    }
    print(json.dumps(record))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
