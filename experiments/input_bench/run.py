"""Measures how fast JPEGs are read and decoded."""

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
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.tables import terminal_table
from kd_local.data import StreamedSplit
from kd_local.data.prepared import PreparedSplit, find

WIDTH, HEIGHT = 500, 375
DISTINCT = 32


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


def run(workers: Sequence[int], *, images: int, size: int, batch: int, rounds: int) -> None:
    """Measures the speed with each number of workers, and prints it.

    Args:
        workers: numbers of worker processes; 0 reads in this process.
        images: images to read for each number of workers, in all rounds.
        size: height and width of a crop, in pixels.
        batch: number of images in a batch.
        rounds: number of timed rounds.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            ENDING.at_end(partial(shutil.rmtree, folder, ignore_errors=True))
            prepared = prepare(Path(folder), max(batch, DISTINCT))
            speeds = [measure(prepared, count, images, size, batch, rounds) for count in workers]
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    _report(speeds, size, batch)


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


def measure(prepared: PreparedSplit, workers: int, images: int, size: int, batch: int, rounds: int) -> Speed:
    """The speed at which batches arrive after a warm-up."""
    split = StreamedSplit(prepared, image_size=size, workers=workers)
    batch = min(batch, len(split))
    each = max(1, images // rounds // batch)
    warm_up = 1 + 4 * workers  # more batches than are buffered, so that reading is then as fast as decoding
    rates, busy = [], 0.0
    with closing(split.training_batches(seed=0, batch_size=batch)) as batches:
        taken = sum(1 for _ in islice(batches, warm_up))
        for _ in range(rounds):
            started, busy_before = time.perf_counter(), _busy_seconds(workers)
            counted = sum(len(images) for _, _, images, _ in islice(batches, each))
            rates.append(counted / (time.perf_counter() - started))
            busy += _busy_seconds(workers) - busy_before
            taken += each
            assert counted <= each * batch
        step, *_ = next(batches)
        assert step == taken
    total = rounds * each * batch
    return Speed(workers, total, rounds, mean(rates), stdev(rates), total / busy)


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


def _report(speeds: list[Speed], size: int, batch: int) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=100)
    columns = {
        "workers": [str(speed.workers) for speed in speeds],
        "images / s": [f"{speed.images_per_second:,.0f}" for speed in speeds],
        "spread": [f"{speed.spread:,.0f}" for speed in speeds],
        "images / s and core": [f"{speed.images_per_core_second:,.0f}" for speed in speeds],
    }
    title = f"JPEGs of {WIDTH}x{HEIGHT} to crops of {size}x{size}, batches of {batch}"
    console.print(terminal_table(columns, title=title))
    record = {
        "size": size,
        "batch": batch,
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
