"""Bad arguments of distributed runs, errors caused by a lost process, and a single process."""

import socket
import time

import jax
import pytest

from kd_local.parallel import hosts
from kd_local.parallel.barriers import Barrier
from kd_local.training.agreement import SAVE, Agreement
from tests.support.processes import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"processes": 2}, "coordinator is None, processes is 2, index is None: give all three, or none under"),
        ({"coordinator": "node0:1234"}, "coordinator is 'node0:1234', processes is None, index is None: give all"),
        ({"coordinator": "node0", "processes": 2, "index": 0}, "coordinator is 'node0': use HOST:PORT, such as"),
        ({"coordinator": ":1234", "processes": 2, "index": 0}, "coordinator is ':1234': use HOST:PORT"),
        ({"coordinator": "::1:1234", "processes": 2, "index": 0}, "coordinator is '::1:1234': use HOST:PORT"),
        ({"coordinator": "node0:0", "processes": 2, "index": 0}, "coordinator is 'node0:0': use HOST:PORT"),
        ({"coordinator": "node0:65536", "processes": 2, "index": 0}, "coordinator is 'node0:65536': use HOST:PORT"),
        ({"coordinator": "node0:1", "processes": 0, "index": 0}, "processes is 0: use 1 or more"),
        ({"coordinator": "node0:1", "processes": 2, "index": 2}, "index is 2 of 2 processes: use 0 to 1"),
        ({"coordinator": "node0:1", "processes": 2, "index": -1}, "index is -1 of 2 processes: use 0 to 1"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds is 0: use 1 or more"),
        ({"start_seconds": 0}, "start_seconds is 0: use 1 or more"),
    ],
)
def test_bad_arguments_of_start_are_refused(arguments, text):
    with pytest.raises(ValueError) as raised:
        hosts.start(**{"heartbeat_seconds": 10, "start_seconds": 10, **arguments})
    assert str(raised.value).startswith(text)


def test_a_missing_coordinator_is_an_error(port):
    started = time.monotonic()
    with pytest.raises(hosts.HostsError, match=f"^nothing listened at localhost:{port} for 1 s: start process 0 there"):
        hosts.start(f"localhost:{port}", 2, 1, heartbeat_seconds=10, start_seconds=1)
    assert 1 <= time.monotonic() - started < 5


def test_a_port_in_use_is_an_error(port):
    text = rf"^process 0 cannot listen on port {port} \(Address already in use\): use another port"
    with socket.create_server(("", port)), pytest.raises(hosts.HostsError, match=text):
        hosts.start(f"localhost:{port}", 2, 0, heartbeat_seconds=10, start_seconds=1)


def chained(cause: Exception) -> Exception:
    error = hosts.HostsError("outer")
    error.__cause__ = ValueError("between")
    error.__cause__.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (hosts.LossError("process 1 was lost"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: [tcp/pair.cc:547] Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo ReduceScatter timed out: "), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Failed to send RPC to coordination service."), True),
        (chained(hosts.LossError("process 1 was lost")), True),
        (chained(ValueError("shapes differ")), False),
        (hosts.HostsError("process 1 did not arrive within 3 s"), False),
        (KeyError("Gloo all-reduce failed"), False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (None, False),
    ],
)
def test_errors_caused_by_a_loss_are_recognised(error, loss):
    assert hosts.is_loss(error) is loss


def test_a_single_process_does_not_wait():
    assert hosts.is_first()
    barrier = Barrier("alone")
    assert barrier.wait("word", seconds=1) == ["word"]
    assert barrier.decide(lambda: {"step": [3, None]}, seconds=1) == {"step": [3, None]}
    with pytest.raises(KeyError), barrier.together(seconds=1):
        raise KeyError
    with barrier.together(seconds=1):
        pass
    agreement = Agreement(1)
    assert [agreement.after(step, wish) for step, wish in enumerate((0, SAVE, 15))] == [0, SAVE, 15]
