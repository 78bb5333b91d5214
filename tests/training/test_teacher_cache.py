"""Runs with and without a cache of the teacher's logits, and caches after stops, damage and full disks."""

import errno
import json
import shutil
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.data import Augmentation, RandAugment, batch_indices, from_arrays, normalise
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.parallel import device_mesh, on_every_device
from kd_local.sizes import shown_bytes
from kd_local.training import CacheError, TeacherCache, checked_rows, train
from kd_local.training import teacher_cache as module
from kd_local.training.cache_shape import cache_bytes, cache_shape
from kd_local.training.inputs import batch_view, keys
from tests.support import tiny

STUDENT = tiny.network()
EXAMPLES, BATCH, EPOCHS = 43, 16, 2  # batches of 16, 16 and 11
STEPS = 6
VARIED = Augmentation(pad=1, flip=True, mean=(77.0,), std=(60.0,))
PLAIN = replace(VARIED, pad=0, flip=False)


def make_data(augmentation, seed=0):
    return tiny.data(EXAMPLES, 9, augmentation=augmentation, seed=seed)


def make_teacher(seed=0, dtype=None):
    network = tiny.network(width=6, dtype=dtype)
    return Teacher(network, tiny.variables(network, seed, (8, 8, 1)))


def make_cache(folder, augmentation=VARIED, teacher=None, data=None, **changes):
    teacher = make_teacher() if teacher is None else teacher
    data = make_data(augmentation) if data is None else data
    options = {"batch_size": BATCH, "steps": STEPS, "seed": 3, **changes}
    return TeacherCache(teacher.network, teacher.variables, data, folder=folder, **options)


def contents(cache):
    return np.load(cache.path)


def distillation(teachers, cached, objective="kd"):
    optimizer = optax.sgd(0.05, momentum=0.9)
    return Distillation(STUDENT, teachers, OBJECTIVES[objective](), optimizer, cached=cached)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("objective", "augmentation", "count", "dtype", "atol"),
    [
        ("kd", VARIED, 2, None, 1e-6),
        ("dkd", VARIED, 1, jnp.bfloat16, 1e-3),  # it rounds where it is compiled to
        # An epoch's last batch is smaller than those that rows are computed in; MLKD's gradients are in the tens.
        ("mlkd", PLAIN, 1, None, 2e-3),
        ("dist", PLAIN, 1, None, 1e-4),
        ("crld", VARIED, 2, None, 1e-6),
        ("mlkd_two_views", PLAIN, 1, None, 2e-3),
    ],
)
def test_a_cache_does_not_change_a_run(tmp_path, objective, augmentation, count, dtype, atol):
    data = make_data(augmentation)
    teachers = tuple(make_teacher(i, dtype) for i in range(count))
    options = {"epochs": EPOCHS, "batch_size": BATCH, "seed": 3}
    with_cache = distillation(teachers, True, objective)
    filled = [
        make_cache(tmp_path, teacher=x, data=data, strong=strong).fill()
        for strong in ([False, True] if objective in ("crld", "mlkd_two_views") else [False])
        for x in teachers
    ]
    plain = train(distillation(teachers, False, objective), data, **options)
    supplies = dict(zip(with_cache.cached_tensors, filled, strict=True))
    cached = train(with_cache, data, **options, extra=supplies)
    assert plain.step == cached.step == STEPS
    for (path, a), b in zip(
        jax.tree.leaves_with_path(plain.state["student"]), jax.tree.leaves(cached.state["student"]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=10 * atol, atol=atol, err_msg=jax.tree_util.keystr(path))
    assert set(cached.state) == {"student"}
    assert plain.records[-1].test.loss == pytest.approx(cached.records[-1].test.loss, rel=1e-2)


@pytest.mark.exhaustive
def test_the_strong_view_has_a_cache_of_its_own(tmp_path):
    """Its rows are those of steps, also without crops and flips, and depend on the settings of the strong view."""
    weak, strong = (make_cache(tmp_path, PLAIN, strong=strong) for strong in (False, True))
    weaker = replace(PLAIN, strong=RandAugment(n=1, m=1.0, cutout=False))
    assert (weak.shape, strong.shape) == ((EXAMPLES, 4), (STEPS, BATCH, 4))
    assert len({weak.path, strong.path, make_cache(tmp_path, weaker, strong=True).path}) == 3
    assert weak.path == make_cache(tmp_path, weaker).path
    assert "strong" not in weak.facts
    step, chosen = next(batch_indices(EXAMPLES, seed=3, batch_size=BATCH))
    teacher, rng = make_teacher(), jax.device_put(keys(3)[0], on_every_device(device_mesh()))
    images = batch_view(PLAIN, device_mesh(), rng, step, strong.data.train.images[chosen], BATCH, strong=True)
    expected = teacher.network.apply(teacher.variables, images, train=False)[0]
    np.testing.assert_allclose(strong.fill()(step, chosen), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
def test_other_cached_logits_change_a_run(tmp_path):
    """Shows that the comparison above can fail: the logits of another teacher change the student."""
    data, teacher = make_data(VARIED), make_teacher()
    method, options = distillation((teacher,), True), {"epochs": EPOCHS, "batch_size": BATCH, "seed": 3}
    right, wrong = (
        train(method, data, **options, extra={"teacher0_logits": make_cache(tmp_path, teacher=x, data=data).fill()})
        for x in (teacher, make_teacher(5))
    )
    head = lambda result: jnp.concatenate([x.ravel() for x in jax.tree.leaves(params(result)["head"])])
    params = lambda result: result.state["student"]["params"]["student"]
    assert np.abs(head(right) - head(wrong)).max() > 1e-2


@pytest.mark.exhaustive
def test_a_row_has_the_logits_of_its_steps_batch(tmp_path):
    cache, teacher = make_cache(tmp_path), make_teacher()
    cache.fill()
    rows = contents(cache)
    assert rows.shape == (STEPS, BATCH, 4) and rows.dtype == np.float32
    rng = jax.device_put(keys(3)[0], on_every_device(device_mesh()))
    for step, size in enumerate((16, 16, 11) * 2):
        order = np.argsort(
            np.random.Philox(key=np.array([3, step // 3], np.uint64)).random_raw(EXAMPLES), kind="stable"
        )
        chosen = order[step % 3 * BATCH :][:BATCH]
        inputs = batch_view(cache.data.augmentation, device_mesh(), rng, step, cache.data.train.images[chosen], size)
        expected = teacher.network.apply(teacher.variables, inputs, train=False)[0]
        np.testing.assert_allclose(rows[step, :size], expected, rtol=1e-5, atol=1e-6)
        assert not rows[step, size:].any()
        # And not those of the images as they are: a crop or a flip shows.
        images = normalise(cache.data.augmentation, cache.data.train.images[chosen])
        unvaried = teacher.network.apply(teacher.variables, images, train=False)[0]
        assert np.abs(rows[step, :size] - unvaried).max() > 1e-3


def test_without_augmentation_rows_do_not_depend_on_seed_and_batch_size(tmp_path):
    cache = make_cache(tmp_path, PLAIN)
    supply = cache.fill()
    teacher = make_teacher()
    images = normalise(PLAIN, jnp.asarray(cache.data.train.images))
    expected = teacher.network.apply(teacher.variables, images, train=False)[0]
    np.testing.assert_allclose(contents(cache), expected, rtol=1e-5, atol=1e-6)
    chosen = np.array([5, 0, 42])
    np.testing.assert_array_equal(supply(1, chosen), contents(cache)[chosen])
    assert make_cache(tmp_path, PLAIN, seed=4, batch_size=8, steps=99).missing().size == 0


class Stop(Exception):
    pass


def stop_after(rows):
    def progress(done, total):
        if done >= rows:
            raise Stop

    return progress


def forwards(monkeypatch):
    """Counts the batches that a teacher evaluates."""
    seen, logits = [], module._logits
    monkeypatch.setattr(module, "_logits", lambda *args: seen.append(len(args[2])) or logits(*args))
    return seen


@pytest.mark.parametrize(("augmentation", "stop", "left"), [(VARIED, 2, 4), (PLAIN, 16, 2)], ids=["augmented", "plain"])
def test_filling_resumes_after_a_stop(tmp_path, monkeypatch, augmentation, stop, left):
    whole, cache = (make_cache(tmp_path / name, augmentation) for name in ("whole", "stopped"))
    whole.fill()
    with pytest.raises(Stop):
        cache.fill(stop_after(stop))
    rows = len(contents(cache))
    assert len(cache.missing()) == rows - stop
    again = make_cache(tmp_path / "stopped", augmentation)
    seen, told = forwards(monkeypatch), []
    again.fill(lambda done, total: told.append((done, total)))
    assert len(seen) == len(told) == left
    assert told[-1] == (rows, rows)
    np.testing.assert_allclose(contents(again), contents(whole), rtol=1e-6, atol=1e-7)
    del seen[:]
    again.fill()
    make_cache(tmp_path / "stopped", augmentation).fill()
    assert not seen


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("augmentation", [VARIED, PLAIN], ids=["varied", "plain"])
def test_a_second_run_waits_for_the_one_that_fills(tmp_path, augmentation, more):
    fills, waits = threading.Event(), threading.Event()

    def until_the_other_waits(done, total):
        fills.set()
        assert waits.wait(20)

    first, second = (make_cache(tmp_path, augmentation, steps=STEPS + longer) for longer in (0, more))
    computed = []
    thread = threading.Thread(target=first.fill, args=(until_the_other_waits,))
    thread.start()
    assert fills.wait(60)
    second.fill(lambda done, total: computed.append(done), waits.set)
    thread.join()
    assert len(computed) == (more if augmentation is VARIED else 0)
    assert not first.missing().size and not second.missing().size
    alone = make_cache(tmp_path / "alone", augmentation, steps=STEPS + more)
    alone.fill()
    assert np.array_equal(contents(second), contents(alone))


def test_without_flock_two_runs_fill_at_once(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    first, second = (make_cache(tmp_path) for _ in range(2))
    first.fill(lambda done, total: second.fill())
    assert not first.missing().size


def test_a_row_that_a_kill_left_incomplete_is_computed_again(tmp_path):
    cache = make_cache(tmp_path)
    cache.fill()
    good = contents(cache)
    sums = cache.path.with_suffix(".crc32.npy")
    sums.write_bytes(sums.read_bytes()[: -4 * 2 - 1])  # two checksums and a piece of a third are not there
    assert cache.missing().tolist() == [3, 4, 5]
    cache.fill()
    np.testing.assert_array_equal(contents(cache), good)
    cache.path.write_bytes(cache.path.read_bytes()[:-10])
    assert cache.missing().tolist() == [5]
    cache.path.write_bytes(b"")
    assert cache.missing().size == STEPS
    cache.fill()
    np.testing.assert_array_equal(contents(cache), good)
    assert np.load(sums).shape == (STEPS,)


def test_a_damaged_row_is_computed_again(tmp_path, monkeypatch):
    cache = make_cache(tmp_path)
    cache.fill()
    good = cache.path.read_bytes()
    damaged = bytearray(good)
    damaged[-1] ^= 1
    damaged[len(good) - 4 * BATCH * 4 * 2 - 3] ^= 64
    cache.path.write_bytes(damaged)
    assert cache.missing().tolist() == [3, 5]
    seen = forwards(monkeypatch)
    cache.fill()
    assert len(seen) == 2
    assert cache.path.read_bytes() == good


def test_rows_of_another_cache_are_not_used(tmp_path):
    theirs, ours = make_cache(tmp_path, teacher=make_teacher(1)), make_cache(tmp_path)
    theirs.fill()
    for suffix in (".npy", ".crc32.npy"):
        shutil.copy(theirs.path.with_suffix(suffix), ours.path.with_suffix(suffix))
    assert len(ours.missing()) == STEPS
    # Nor a row in another's place.
    theirs_again = np.load(theirs.path, mmap_mode="r+")
    theirs_again[[0, 1]] = theirs_again[[1, 0]]
    theirs_again.flush()
    assert theirs.missing().tolist() == [0, 1]


@pytest.mark.long
def test_the_file_name_depends_on_everything_that_rows_depend_on(tmp_path):
    data = make_data(VARIED)
    other_image = from_arrays(
        (data.train.images ^ (np.arange(EXAMPLES) == 7).astype(np.uint8)[:, None, None, None], data.train.labels),
        (data.test.images, data.test.labels),
        classes=4,
        augmentation=VARIED,
    )
    teacher = make_teacher()
    almost = jax.tree.map(np.array, teacher.variables)
    jax.tree.leaves(almost["batch_stats"])[0][0] += 1e-6
    varied = {
        "same": make_cache(tmp_path),
        "weights": make_cache(tmp_path, teacher=make_teacher(1)),
        "a statistic": make_cache(tmp_path, teacher=Teacher(teacher.network, almost)),
        "dtype": make_cache(tmp_path, teacher=make_teacher(dtype=jnp.bfloat16)),
        "an image": make_cache(tmp_path, data=other_image),
        "mean": make_cache(tmp_path, replace(VARIED, mean=(77.5,))),
        "std": make_cache(tmp_path, replace(VARIED, std=(61.0,))),
        "padding": make_cache(tmp_path, replace(VARIED, padding="reflect")),
        "pad": make_cache(tmp_path, replace(VARIED, pad=2)),
        "flip": make_cache(tmp_path, replace(VARIED, flip=False)),
        "plain": make_cache(tmp_path, PLAIN),
        "seed": make_cache(tmp_path, seed=4),
        "batch size": make_cache(tmp_path, batch_size=15),
    }
    paths = {name: cache.path for name, cache in varied.items()}
    assert len(set(paths.values())) == len(paths), paths
    assert make_cache(tmp_path).path == paths["same"]
    assert make_cache(tmp_path, mesh=device_mesh(8)).path == paths["same"]


@pytest.mark.parametrize("flag", ["jax_threefry_partitionable", "jax_default_matmul_precision"])
def test_the_file_name_depends_on_the_settings_of_jax(tmp_path, flag):
    before = make_cache(tmp_path).path
    value = getattr(jax.config, flag)
    jax.config.update(flag, "float32" if value is None else not value)
    try:
        assert make_cache(tmp_path).path != before
    finally:
        jax.config.update(flag, value)


def test_longer_and_shorter_runs_share_a_file(tmp_path, monkeypatch):
    short, long = make_cache(tmp_path / "a", steps=4), make_cache(tmp_path / "a", steps=11)
    whole = make_cache(tmp_path / "b", steps=11)
    whole.fill()
    seen = forwards(monkeypatch)
    short.fill()
    assert len(seen) == 4
    assert contents(short).shape == (4, BATCH, 4)
    long.fill()
    assert len(seen) == 11
    assert short.path.read_bytes() == whole.path.read_bytes()
    damaged = bytearray(short.path.read_bytes())
    damaged[200] ^= 1
    short.path.write_bytes(damaged)
    short.fill()
    assert len(seen) == 12
    assert short.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("augmentation", [VARIED, PLAIN], ids=["augmented", "plain"])
def test_the_size_is_known_before_anything_is_written(tmp_path, augmentation):
    cache = make_cache(tmp_path, augmentation)
    size = cache.size
    assert not list(tmp_path.iterdir())
    cache.fill()
    assert size == sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert json.loads(cache.path.with_suffix(".json").read_text())["platform"] == "cpu"


def test_cache_sizes_of_the_usual_protocol():
    # CIFAR-100, 240 epochs of 782 batches of 64: 782 * 240 * (64 * 100 * 4 + 4) bytes, and two headers.
    protocol = {"examples": 50_000, "classes": 100, "batch_size": 64, "steps": 782 * 240}
    varied = cache_bytes(cache_shape(VARIED, **protocol))
    assert varied == 782 * 240 * 25_604 + 256
    assert shown_bytes(varied) == "4.5 GiB"
    plain = cache_bytes(cache_shape(PLAIN, **protocol))
    assert plain == 50_000 * 404 + 256
    assert shown_bytes(plain) == "19.3 MiB"


def test_too_little_disk_space_is_reported_before_anything_is_computed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1500)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    cache, seen = make_cache(tmp_path), forwards(monkeypatch)
    with pytest.raises(
        CacheError, match=r"logits need 1\.5 KiB more on the disk that holds .*, which has 1\.5 KiB left"
    ):
        cache.fill()
    assert not seen and not list(tmp_path.iterdir())


def test_a_disk_that_becomes_full_is_reported_and_written_rows_remain(tmp_path, monkeypatch):
    cache, write = make_cache(tmp_path), checked_rows._write

    def full(file, offset, content):
        if offset > 900:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, offset, content)

    monkeypatch.setattr(checked_rows, "_write", full)
    with pytest.raises(
        CacheError, match=r"cannot be written; 4 of 6 rows are there: No space left .* the same command"
    ):
        cache.fill()
    monkeypatch.setattr(checked_rows, "_write", write)
    assert cache.missing().tolist() == [4, 5]
    cache.fill()
    assert cache.missing().size == 0


@pytest.mark.exhaustive
def test_a_batch_that_was_not_cached_is_refused(tmp_path):
    cache = make_cache(tmp_path)
    supply, method = cache.fill(), distillation((make_teacher(),), True)
    for changes in ({"seed": 4}, {"batch_size": 15}, {"epochs": 3}):
        options = {"epochs": EPOCHS, "batch_size": BATCH, "seed": 3, **changes}
        with pytest.raises(
            ValueError, match=r"the teacher's logits were cached for another batch than that of step \d"
        ):
            train(method, cache.data, **options, extra={"teacher0_logits": supply})


def test_a_mesh_computes_the_rows_of_one_device(tmp_path):
    one, eight = make_cache(tmp_path / "1"), make_cache(tmp_path / "8", mesh=device_mesh(8))
    one.fill()
    eight.fill()
    np.testing.assert_allclose(contents(one), contents(eight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [name for name, kind in OBJECTIVES.items() if kind.reads != "logits"])
def test_objectives_on_features_are_refused(objective):
    with pytest.raises(ValueError, match=r"reads the teacher's features, and a cache has its logits only"):
        distillation((make_teacher(),), True, objective)
