"""A teacher's logits on disk. They are computed once, and read by every run that gives the teacher the same images.

With augmentation, a row has the logits of a step's batch. The batch depends only on seed and step, and is recomputed by
the code of the loop. Without augmentation, a row has the logits of an image. Each view of the images has a cache of its
own; the strong view always has augmentation.

After a stop, filling resumes. A damaged row is computed again, see `checked_rows`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int64, UInt8

import kd_local
from kd_local.data import Augmentation, Data, Split, batch_indices, indices_at, normalise
from kd_local.distill.digests import variables_digest
from kd_local.distill.teacher import Renormalisation, renormalised
from kd_local.files import replace_text
from kd_local.networks import Network, Variables
from kd_local.parallel import device_mesh, on_every_device, over_the_batch
from kd_local.sizes import shown_bytes
from kd_local.training.cache_shape import cache_bytes, cache_shape, varies
from kd_local.training.checked_rows import CheckedRows
from kd_local.training.finite import check_finite
from kd_local.training.inputs import ExtraTensor, batch_view, keys

Rows = tuple[Int64[np.ndarray, " rows"], Float32[np.ndarray, "rows *shape"]]
"""Indices of rows, and the rows."""


class CacheError(Exception):
    """A cache could not be written or read. The message has the reason and the number of rows that are complete."""


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """The logits of one teacher, in evaluation mode, for a run of `steps` steps.

    The files are named by a digest of everything that a row depends on (`facts`). A shorter run reads the first rows of
    a longer run's file, and a longer run adds rows to the file of a shorter one.

    Attributes:
        network, variables: the teacher.
        folder: the folder of the files.
        batch_size, seed, steps: the arguments of `train`; `steps` is the number of steps of the whole run.
        mesh: the devices that compute the logits, all of this process.
        renormalisation: the teacher's, see `Teacher`.
        strong: True for the logits of the strong view, see `Augmentation.strong`.
    """

    network: Network
    variables: Variables
    data: Data
    folder: Path
    batch_size: int
    steps: int
    seed: int = 0
    mesh: Mesh | None = None
    renormalisation: Renormalisation | None = None
    strong: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """See `cache_shape`."""
        return cache_shape(
            self.data.augmentation,
            examples=len(self.data.train),
            classes=self.data.classes,
            batch_size=self.batch_size,
            steps=self.steps,
            strong=self.strong,
        )

    @property
    def size(self) -> int:
        """Bytes on disk of the full cache."""
        return cache_bytes(self.shape)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Everything that a row depends on, by name, as numbers and text."""
        config: Any = jax.config  # older type stubs know only some of its settings
        augmentation = self.data.augmentation
        facts = {
            "network": repr(self.network),  # its compute dtype too
            "variables": variables_digest(self.variables),
            "images": _digest(self._images),
            "shape": self._images.shape,
            "classes": self.data.classes,
            "mean": augmentation.mean,
            "std": augmentation.std,
            # These determine how the numbers are computed.
            "platform": self._mesh.devices.flat[0].platform,
            "precision": config.jax_default_matmul_precision,
            "kd_local": kd_local.__version__,
        }
        if self.renormalisation is not None:
            facts["renormalisation"] = asdict(self.renormalisation)
        if self._varies:
            # The batch of the first step depends on everything that crops depend on, such as JAX's random numbers.
            channels = len(augmentation.mean)
            plain = replace(augmentation, mean=(0.0,) * channels, std=(1.0,) * channels)
            _, first = next(self._batches(0))
            pixels = self._view(plain, 0, first)
            numbers = asdict(augmentation)
            if not self.strong:
                del numbers["strong"]
            facts |= {
                **numbers,
                "seed": self.seed,
                "batch_size": self.batch_size,
                "pixels": _digest(np.asarray(pixels).round().astype(np.uint8)),
            }
        return facts

    @cached_property
    def key(self) -> str:
        """A digest of `facts`."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def path(self) -> Path:
        """The .npy file of the logits, float32, of shape `shape` or with more steps."""
        return self.folder / f"logits-{self.key}.npy"

    def missing(self) -> Int64[np.ndarray, " rows"]:
        """The indices of the rows that are missing or damaged. Reads all rows.

        Raises:
            CacheError: a file cannot be read.
        """
        try:
            return self._rows.missing()
        except OSError as error:
            raise self._failed("cannot be read", error) from error

    def fill(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> ExtraTensor:
        """Computes the missing rows. Returns the function that `train` takes as an extra tensor.

        While another process fills the cache, it waits, and then computes what is still missing.

        Args:
            progress: called as `progress(done, total)` after every batch, with numbers of rows. If it raises an
                exception, filling ends, and complete rows remain.
            waiting: called once before it waits for another process.

        Raises:
            ValueError: the teacher's variables are not finite.
            CacheError: a file cannot be read or written, the disk has no room for it, or a logit is not finite.
        """
        check_finite(self.variables, of="the teacher")
        missing = self.missing()
        if missing.size:
            done, total = self.shape[0] - len(missing), self.shape[0]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._check_room(len(missing))
                replace_text(self.path.with_suffix(".json"), json.dumps(self.facts, indent=2) + "\n")  # for people
                with self._rows.writing(waiting) as write:
                    missing = self.missing()  # another process may have written some meanwhile
                    done = total - len(missing)
                    for indices, rows in self._computed(missing):
                        for i, row in zip(indices.tolist(), rows, strict=True):
                            write(i, row)
                        done += len(indices)
                        progress(done, total)
            except OSError as error:
                raise self._failed(f"cannot be written; {done:,} of {total:,} rows are there", error) from error
        return partial(self._logits_of, self._rows.read())

    def _logits_of(
        self, rows: Float32[np.ndarray, "rows *shape"], step: int, chosen: Int64[np.ndarray, " batch"]
    ) -> Float32[np.ndarray, "batch classes"]:
        if not self._varies:
            return np.array(rows[chosen])
        expected = indices_at(len(self.data.train), seed=self.seed, batch_size=self.batch_size, step=step)
        if step >= self.steps or not np.array_equal(chosen, expected):
            raise ValueError(
                f"the teacher's logits were cached for another batch than that of step {step}: fill the cache "
                f"with the data, seed, batch size and steps of the run (the cache has {len(self.data.train)} images, "
                f"seed {self.seed}, batches of {self.batch_size}, {self.steps} steps)"
            )
        return np.array(rows[step, : len(chosen)])

    def _computed(self, missing: Int64[np.ndarray, " rows"]) -> Iterator[Rows]:
        """Yields rows in order. The devices compute the next rows while the caller writes the current ones."""
        waiting: tuple[np.ndarray, Array] | None = None
        variables = jax.device_put(dict(self.variables), on_every_device(self._mesh))
        for indices, inputs in self._inputs(missing):
            logits = _logits(self.network, self.renormalisation, variables, inputs)
            if waiting is not None:
                yield self._as_rows(*waiting)
            waiting = indices, logits
        if waiting is not None:
            yield self._as_rows(*waiting)

    def _inputs(self, missing: Int64[np.ndarray, " rows"]) -> Iterator[tuple[Int64[np.ndarray, " rows"], Array]]:
        if missing.size and self._varies:
            wanted = np.isin(np.arange(self.steps), missing)
            for step, chosen in islice(self._batches(int(missing[0])), int(missing[-1] - missing[0]) + 1):
                if wanted[step]:
                    yield np.array([step]), self._view(self.data.augmentation, step, chosen)
            return
        for start in range(0, len(missing), self.batch_size):
            indices = missing[start : start + self.batch_size]
            images = self._images[np.resize(indices, self.batch_size)]  # one batch size: compiled once
            placed = jax.device_put(images, over_the_batch(self._mesh, self.batch_size))
            yield indices, normalise(self.data.augmentation, placed)

    def _view(
        self, augmentation: Augmentation, step: int, chosen: Int64[np.ndarray, " batch"]
    ) -> Float[Array, "batch h w c"]:
        images = self._images[chosen]
        return batch_view(augmentation, self._mesh, self._rng, step, images, len(chosen), strong=self.strong)

    def _as_rows(self, indices: Int64[np.ndarray, " rows"], logits: Array) -> Rows:
        found = np.asarray(logits)
        if not np.isfinite(found).all():
            raise CacheError(
                f"the teacher's logits of {self.path} are not finite, although its weights are: compute them in "
                "float32, or use another teacher"
            )
        if not self._varies:
            return indices, found[: len(indices)]
        return indices, np.pad(found, ((0, self.batch_size - len(found)), (0, 0)))[None]

    def _check_room(self, rows: int) -> None:
        needed, free = rows * self._rows.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"the teacher's logits need {shown_bytes(needed)} more on the disk that holds {self.folder}, which has "
                f"{shown_bytes(free)} left: free some space, use another disk, train without crops and flips, or "
                "without a cache"
            )

    def _failed(self, what: str, error: OSError) -> CacheError:
        return CacheError(
            f"the teacher's logits in {self.path} {what}: {error.strerror or error}; repair this, and the same command "
            "resumes"
        )

    @property
    def _varies(self) -> bool:
        return varies(self.data.augmentation, strong=self.strong)

    @cached_property
    def _rows(self) -> CheckedRows:
        return CheckedRows(self.path, self.key, self.shape)

    def _batches(self, step: int) -> Iterator[tuple[int, Int64[np.ndarray, " batch"]]]:
        return batch_indices(len(self.data.train), seed=self.seed, batch_size=self.batch_size, start_step=step)

    @property
    def _images(self) -> UInt8[np.ndarray, "n h w c"]:
        train = self.data.train
        if not isinstance(train, Split):
            raise CacheError(
                f"the images of {self.data.name} are not held in memory, and every epoch crops them differently: "
                "train without a cache of the teacher's logits"
            )
        return train.images

    @cached_property
    def _mesh(self) -> Mesh:
        return device_mesh() if self.mesh is None else self.mesh

    @cached_property
    def _rng(self) -> Array:
        return jax.device_put(keys(self.seed)[0], on_every_device(self._mesh))


@partial(jax.jit, static_argnums=(0, 1))
def _logits(
    network: Network, renormalisation: Renormalisation | None, variables: Variables, images: Float[Array, "n h w c"]
) -> Float[Array, "n k"]:
    return network.apply(variables, renormalised(images, renormalisation), train=False)[0].astype(jnp.float32)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
