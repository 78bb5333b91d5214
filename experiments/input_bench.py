"""How fast images are read, decoded and cropped here: python -m experiments.input_bench [--workers=0,1,2] [--size=224]

JPEGs of 500x375 pixels, about as large as ImageNet's are on average, are made and prepared on the spot, and read back
as the training loop reads them, with so many worker processes each time. Nothing is trained and nothing is left behind.
The warm-up, which is not counted, includes the start of the workers. What is printed: a table, and a line of JSON.
"""

import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail
from kd_local.data import StreamedSplit
from kd_local.data.prepared import PreparedSplit, find

WIDTH, HEIGHT = 500, 375
DISTINCT = 32
ROUNDS = 5

_IMAGES = flags.DEFINE_integer("images", 1000, f"Images to time for each number of workers, in {ROUNDS} rounds.")
_WORKERS = flags.DEFINE_string("workers", "0,1,2", "Numbers of worker processes; 0 is without any.")
_SIZE = flags.DEFINE_integer("size", 224, "Pixels of a crop.")
_BATCH = flags.DEFINE_integer("batch", 50, "Images of a batch.")


@dataclass(frozen=True)
class Speed:
    """Of one number of workers.

    Attributes:
        workers: processes; 0 is the main one.
        images: timed, in `rounds`, as are the next two.
        images_per_second: the mean over rounds, by the clock.
        spread: its standard deviation.
        images_per_core_second: by the processor time of those that decode, whatever else the machine did.
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
        workers = _numbers(_WORKERS.value)
        for name, value in (("images", _IMAGES.value), ("batch", _BATCH.value), ("size", _SIZE.value)):
            if value < 1:
                raise ValueError(f"--{name}={value}: use 1 or more")
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(Path(folder), max(_BATCH.value, DISTINCT))
            speeds = [measure(prepared, count, _IMAGES.value, _SIZE.value, _BATCH.value) for count in workers]
    except (ValueError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    _report(speeds)


def prepare(folder: Path, count: int) -> PreparedSplit:
    """A training split of so many JPEGs, each of `DISTINCT` equally often."""
    import tensorflow_datasets as tfds

    def generate() -> Iterator[tuple[int, dict[str, Any]]]:
        files = [_jpeg(seed) for seed in range(min(count, DISTINCT))]
        for index in range(count):
            image = io.BytesIO(files[index % DISTINCT])
            yield index, {"image": image, "label": index % 1000, "file_name": f"{index}.JPEG"}

    tfds.disable_progress_bar()
    # What the builder says goes to standard output, where only the results belong, and it leaves a folder behind.
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
    """Structure of all widths, of some 110 kB, as the mean of ImageNet's files is."""
    random = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3))
    for width, share in ((2, 3 / 7), (8, 2 / 7), (64, 2 / 7)):
        noise = random.integers(0, 256, (HEIGHT // width + 1, WIDTH // width + 1, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * share
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=92)
    return file.getvalue()


def measure(prepared: PreparedSplit, workers: int, images: int, size: int, batch: int) -> Speed:
    """How fast batches come, after a warm-up, if whoever takes them does nothing else."""
    split = StreamedSplit(prepared, image_size=size, workers=workers)
    batch = min(batch, len(split))
    each = max(1, images // ROUNDS // batch)
    warm_up = 1 + 4 * workers  # more than lie ready: from then on a batch is taken for each that is made
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
    """The processor time of the processes that decode, so far."""
    if not workers:
        return time.process_time()
    seconds = 0.0
    for child in multiprocessing.active_children():
        # The fields behind the name, which may hold anything, from the third on.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _report(speeds: list[Speed]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=100)
    table = Table(title=f"JPEGs of {WIDTH}x{HEIGHT} to crops of {_SIZE.value}x{_SIZE.value}, batches of {_BATCH.value}")
    for heading in ("workers", "images / s", "spread", "images / s and core"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        rate, spread, of_core = speed.images_per_second, speed.spread, speed.images_per_core_second
        table.add_row(str(speed.workers), f"{rate:,.0f}", f"{spread:,.0f}", f"{of_core:,.0f}")
    console.print(table)
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


def parse(argv: Sequence[str]) -> list[str]:
    try:
        rest: list[str] = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}: everything is given by flags, as --workers=4")
        return rest
    except (flags.Error, ValueError) as error:
        fail(error, USAGE_STATUS)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--workers={text}: use whole numbers with commas between, such as --workers=0,1,2")
    return [int(part) for part in dict.fromkeys(parts)]


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
