"""Several processes of one run: their computations, decisions, and ends when one of them is killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.distributed import global_state

from kd_local.local import ContSup, cut
from kd_local.models import resnet
from kd_local.parallel import (
    aborts,
    compile_step,
    device_mesh,
    hosts,
    move,
    on_every_device,
    over_the_batch,
    put_rows,
)
from kd_local.parallel.barriers import Barrier
from kd_local.training.agreement import SAVE, Agreement
from kd_local.training.inputs import share_of
from tests.support.processes import finish_all, free_port, said_values, say, start_file

HEARTBEAT = 5


@pytest.fixture
def port() -> int:
    return free_port()


def start_program(
    what: str, index: int, port: int, *arguments: object, devices: int = 2, **environment: str
) -> subprocess.Popen[str]:
    return start_file(__file__, what, port, index, *arguments, devices_of_each=devices, **environment)


def finish(programs: Sequence[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, list[list], str]]:
    """Exit status, values of each `say`, and standard error of each."""
    return [(status, said_values(out), err) for status, out, err in finish_all(programs, seconds)]


def wait_until_going(programs: Sequence[subprocess.Popen]) -> None:
    for program in programs:
        assert program.stdout is not None
        while (line := program.stdout.readline()) != 'said ["going"]\n':
            assert line, program.communicate()


def everywhere() -> None:
    """Arrays on the devices of both processes, and messages between them."""
    index, mesh = jax.process_index(), device_mesh(jax.device_count())
    say(jax.process_count(), jax.device_count(), jax.config.values["jax_cpu_collectives_implementation"])
    rows = np.arange(24, dtype=np.float64).reshape(8, 3)
    replicated, batched = on_every_device(mesh), over_the_batch(mesh, 8)
    key = jax.random.key(3)
    with jax.transfer_guard("disallow"):
        mine = share_of(mesh).rows(8)
        say(mine.start, mine.stop, share_of(mesh).rows(5) == slice(0, 5))
        put = move({"rows": rows, "key": key}, replicated)
        divided = move(rows, batched)
        shares = put_rows(rows[mine], mesh, 8)
        last = put_rows(rows[:5], mesh, 5)
        total = jax.jit(lambda x: jnp.sum(x * x), out_shardings=replicated)
        say(*(float(jax.device_get(total(x))) for x in (put["rows"], divided, shares, last)))
        bits = jax.jit(jax.random.bits, out_shardings=replicated)(put["key"])
        say(int(jax.device_get(bits)), put["key"].sharding == replicated, str(put["rows"].dtype))
    say([np.array_equal(shard.data, rows[shard.index]) for shard in shares.addressable_shards])

    barrier = Barrier("words")
    say([barrier.wait(f"{turn} of {index}", seconds=30) for turn in range(3)])
    say(len(global_state.client.key_value_dir_get("kd_local/words/")) <= 3)
    say(barrier.decide(lambda: {"step": 7, "of": index}, seconds=30))
    for what, failing in (("together", 1), ("decide", 0)):
        barrier, started = Barrier("words"), time.monotonic()
        try:
            if what == "together":
                with barrier.together(seconds=30):
                    if index == failing:
                        raise KeyError("mine")
            else:
                barrier.decide(lambda: {}["mine"], seconds=30)
        except Exception as error:
            say(type(error).__name__, str(error), time.monotonic() - started < 10)
    barrier = Barrier("words")
    if index == 0:
        try:
            barrier.wait(seconds=1)
        except hosts.HostsError as error:
            say(str(error), hosts.is_loss(error))
    Barrier("end").wait(seconds=30)
    say("end")


def test_two_processes_compute_and_decide_together(port):
    ends = finish([start_program("everywhere", index, port) for index in range(2)])
    for index, (status, said, err) in enumerate(ends):
        assert status == 0, err
        squares = sum(x * x for x in range(24))
        assert said[:2] == [[2, 4, "gloo"], [4 * index, 4 * index + 4, True]]
        assert said[2] == [squares, squares, squares, sum(x * x for x in range(15))]
        assert said[3] == [int(jax.random.bits(jax.random.key(3))), True, "float32"]
        assert said[4] == [[True, True]]
        assert said[5] == [[[f"{turn} of 0", f"{turn} of 1"] for turn in range(3)]]
        assert said[6] == [True], "words of earlier turns are kept"
        assert said[7] == [{"step": 7, "of": 0}]
        own, others = ["KeyError", "'mine'", True], ["HostsError", f"process {1 - index}: 'mine'", True]
        assert said[8:10] == ([others, own] if index == 0 else [own, others])
        assert said[10:-1] == (
            [["process 1 did not arrive within 1 s: look at its output", False]] if index == 0 else []
        )
        assert said[-1] == ["end"]


def steps(how: str) -> None:
    """Computes with the other processes until one is lost, or waits for something else after a computation."""
    aborts.GRACE_SECONDS = 1.0
    mesh = device_mesh(jax.device_count())
    mean = jax.jit(lambda x: x + jnp.mean(x), out_shardings=over_the_batch(mesh, 8))
    x = move(np.ones(8, np.float32), over_the_batch(mesh, 8))
    hosts.on_abort(lambda: f"{hosts.lost()}, says the runtime")
    try:
        for step in range(10_000):
            x = mean(x)
            jax.block_until_ready(x)
            time.sleep(0.01)
            if step == 5:
                say("going")
                if how == "idle":
                    time.sleep(1000)
    except Exception as error:
        if not hosts.is_loss(error):
            raise
        print(f"error: {hosts.lost()}, says a computation", file=sys.stderr)
        hosts.leave(3)


@pytest.mark.usually("computing-1", "idle-0")
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("how", ["computing", "idle"])
def test_a_process_that_is_killed_ends_the_others(port, killed, how):
    programs = [start_program("steps", index, port, how, devices=1) for index in range(2)]
    wait_until_going(programs)
    programs[killed].kill()
    started = time.monotonic()
    (status, _, err) = finish([programs[1 - killed]])[0]
    seconds = time.monotonic() - started
    programs[killed].communicate()
    lost = f"process 0 (localhost:{port})" if killed == 0 else "process 1"
    if how == "computing":
        assert status == 3 and f"error: {lost} was lost, says a computation" in err.splitlines()
        assert seconds < 4
    else:
        # The loss of process 0 shows by itself, that of another by its heartbeat.
        assert status == 1 and err.splitlines()[-1] == f"error: {lost} was lost, says the runtime"
        assert seconds < (5 if killed == 0 else 3 * HEARTBEAT)


def aborting(how: str) -> None:
    """Process 1 aborts for a reason of its own; the other one waits."""
    hosts.on_abort(lambda: f"{hosts.lost()}, says the runtime")
    aborts.GRACE_SECONDS = 1.0
    Barrier("ready").wait(seconds=30)
    if jax.process_index() == 1:
        print("trace of the failed check", file=sys.stderr, flush=True)
        if how == "main":
            os.abort()
        elif how == "thread":
            threading.Thread(target=os.abort).start()
        else:
            os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(100)


@pytest.mark.usually("main")
@pytest.mark.parametrize("how", ["main", "thread", "kill"])
def test_a_process_that_aborts_for_its_own_reason_says_so(port, how):
    programs = [start_program("aborting", index, port, how, devices=1) for index in range(2)]
    started = time.monotonic()
    (other, _, theirs), (status, _, err) = finish(programs)
    assert status == -signal.SIGABRT
    assert err.startswith("trace of the failed check\n")
    assert "in aborting" in err, "the Python stacks"
    assert err.splitlines()[-1] == "error: this process aborted; the trace is above"
    assert "lost" not in err
    assert other == 1 and theirs.splitlines()[-1] == "error: process 1 was lost, says the runtime"
    assert time.monotonic() - started < 40


def test_missing_processes_are_an_error(port):
    started = time.monotonic()
    (status, said, err) = finish([start_program("nothing", 0, port, 1)])[0]
    assert (status, said) == (1, [])
    assert err.splitlines()[-1] == (
        f"error: not all processes connected at localhost:{port} within 1 s: start all of them"
    )
    assert time.monotonic() - started < 20


def test_a_missing_cluster_is_an_error(port):
    (status, said, _) = finish([start_program("no_cluster", 0, port)])[0]
    assert status == 0
    assert said == [
        [
            "no cluster was found (Slurm, Open MPI, Kubernetes, a TPU pod): give coordinator (HOST:PORT), processes "
            "and index"
        ]
    ]


EPHEMERAL = 65536 - 4096
"""From here on are the ports that JAX derives from the number of a job."""


def slurm(port: int, index: int) -> dict[str, str]:
    """What srun tells its processes."""
    return {
        "SLURM_JOB_ID": str(4096 * 7 + port - EPHEMERAL),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NUM_NODES": "1",
    }


def open_mpi(port: int, index: int) -> dict[str, str]:
    """What mpirun tells its processes."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{4096 * (port - EPHEMERAL)}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def free_ephemeral_port() -> int:
    for port in range(EPHEMERAL + os.getpid() % 3000, 65536):
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError("no free port")


@pytest.mark.parametrize("cluster", [slurm, open_mpi])
def test_a_cluster_manager_gives_coordinator_and_index(cluster):
    port = free_ephemeral_port()
    programs = [start_program("cluster", index, port, **cluster(port, index)) for index in range(2)]
    ends = finish(programs)
    assert [status for status, _, _ in ends] == [0, 0], ends[0][2] + ends[1][2]
    assert [said for _, said, _ in ends] == [[[0, 2, 4, True]], [[1, 2, 4, False]]]


def modules(groups: str) -> None:
    """Two steps with the modules divided among groups, each of which has devices of every process."""
    method = ContSup(cut(resnet(8, classes=4), 2, classes=4, context="R1E"), optax.sgd(0.1, momentum=0.9))
    shape = (8, 8, 8, 1)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    rng = jax.random.key(1)
    state = method.init(rng, jax.ShapeDtypeStruct(shape, jnp.float32))
    labels = np.arange(8, dtype=np.int32) % 4
    mesh = device_mesh(jax.process_count() * (4 // int(groups)), int(groups))
    step = compile_step(method, jax.ShapeDtypeStruct(shape, jnp.float32), labels, mesh=mesh)
    first = step.plan.groups[0]
    rows = share_of(first).rows(8)
    state, rng = step.place(state), move(rng, on_every_device(first))
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            batch = put_rows((images[rows], labels[rows]), first, 8)
            state, metrics = step(state, *batch, rng)
    places = {name: sorted(device.id for device in jax.tree.leaves(part)[0].devices()) for name, part in state.items()}
    say(len(step.plan.groups), len(set(map(tuple, places.values()))))
    say({name: float(jax.device_get(metrics[name]["loss"])) for name in metrics})
    together = move({name: part["params"] for name, part in state.items()}, on_every_device(device_mesh(8)))
    say(float(sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(jax.device_get(together)))))


@pytest.mark.exhaustive
def test_modules_over_the_devices_of_two_processes(port):
    """Two groups of two devices of each process, against one group of all eight."""
    found = {}
    for groups in (1, 2):
        ends = finish([start_program("modules", index, port, groups, devices=4) for index in range(2)], seconds=200)
        assert [status for status, _, _ in ends] == [0, 0], ends[0][2] + ends[1][2]
        assert ends[0][1] == ends[1][1]
        found[groups] = ends[0][1]
        assert found[groups][0] == [groups, groups]
    (losses,), (ours,) = found[1][1], found[2][1]
    assert ours == pytest.approx(losses, rel=1e-4)
    assert found[2][2] == pytest.approx(found[1][2], rel=1e-5)


def agreeing() -> None:
    """Each process makes a request at its own time. No process is further ahead than a joint computation allows."""
    mesh = device_mesh(jax.device_count())
    total = jax.jit(jnp.sum, out_shardings=on_every_device(mesh))
    x = move(np.ones(8, np.float32), over_the_batch(mesh, 8))
    agreement, wishes = Agreement(1), [{3: SAVE, 40: signal.SIGTERM}, {20: SAVE}][jax.process_index()]
    for step in range(60):
        total(x).block_until_ready()
        agreed = agreement.after(step, int(wishes.get(step, 0)))
        if agreed:
            say(step, agreed)
        if agreed > 0:
            return


def test_all_processes_carry_out_a_request_after_the_same_step(port):
    (first, ours, err), (second, theirs, _) = finish([start_program("agreeing", index, port) for index in range(2)])
    assert first == second == 0, err
    assert ours == theirs
    (one, save), (two, again), (three, stop) = ours
    assert (save, again, stop) == (SAVE, SAVE, signal.SIGTERM)
    assert 3 < one <= 20 < two <= 40 < three < 60


def main(what: str, port: str, index: str, *arguments: str) -> None:
    if what == "no_cluster":
        try:
            hosts.start(heartbeat_seconds=HEARTBEAT, start_seconds=1)
        except ValueError as error:
            say(str(error))
        return
    if what == "cluster":
        hosts.start(heartbeat_seconds=HEARTBEAT, start_seconds=30)
        say(jax.process_index(), jax.process_count(), jax.device_count(), hosts.is_first())
        return
    patience = int(arguments[0]) if what == "nothing" else 30
    hosts.start(f"localhost:{port}", 2, int(index), heartbeat_seconds=HEARTBEAT, start_seconds=patience)
    programs = {program.__name__: program for program in (everywhere, steps, modules, agreeing, aborting)}
    programs[what](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
