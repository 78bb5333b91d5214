"""Handles SIGABRT, by which the runtime ends this process: because another process is lost, or because a check failed.

If another process is lost, a thread of the JAX runtime aborts this process. Failed checks of XLA and of C libraries
abort it too. The coordination service tells the two cases apart: after a loss it does not answer this process, because
the thread that would receive the answer is the one that aborts.

After a loss the main thread has `GRACE_SECONDS` to end the program in its own way. Then the message of `on_abort` is
printed, and the process exits with status 1. In any other case the Python stacks are printed, and the abort proceeds:
the signal ends the process, with a core file if the system keeps them.

The state is global because a signal has one action for the whole process. The action only wakes a watching thread and
waits for it. The watching thread does all other work, because the aborting thread may hold locks of the runtime.
"""

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

GRACE_SECONDS = 5.0
"""The time that the main thread has to end the program after a loss."""
ANSWER_SECONDS = 2.0
"""The time that the coordination service has for an answer."""


@dataclass
class _State:
    message: Callable[[], str] = lambda: "another process was lost"
    ask: Callable[[], object] | None = None
    process: int | None = None
    aborting: threading.Event = field(default_factory=threading.Event)
    explained: threading.Event = field(default_factory=threading.Event)


_state = _State()
_libc = ctypes.CDLL(None)


def on_abort(message: Callable[[], str]) -> None:
    """Sets the message that is printed when this process ends because another one is lost.

    Args:
        message: returns the message; called at that time, in a separate thread.
    """
    _state.message = message


def watch_aborts() -> None:
    """Handles SIGABRT from now on. Until `ask_before_blaming` is called, every abort counts as a loss."""
    if _state.process is None:
        threading.Thread(target=_explain, name="aborts", daemon=True).start()
    _state.process = os.getpid()
    _libc.signal(signal.SIGABRT, _aborted)


def ask_before_blaming(ask: Callable[[], object]) -> None:
    """Sets a request to the coordination service, made at an abort. Any answer, even an error, means: no loss."""
    _state.ask = ask


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    if os.getpid() == _state.process:  # a forked child has this action, but not the thread
        _state.aborting.set()
        _state.explained.wait(GRACE_SECONDS + ANSWER_SECONDS + 60)
    _libc.signal(number, None)
    signal.raise_signal(number)  # ends the process once this returns


def _explain() -> None:
    _state.aborting.wait()
    started = time.monotonic()
    if _answered():
        faulthandler.dump_traceback(2)
        os.write(2, b"error: this process aborted; the trace is above\n")
        _state.explained.set()
        return
    if _state.ask is not None:
        time.sleep(max(GRACE_SECONDS - (time.monotonic() - started), 0))
    try:
        text = _state.message()
    except Exception as error:
        text = f"another process was lost ({error})"
    os.write(2, f"error: {text}\n".encode())
    os._exit(1)


def _answered() -> bool:
    """True if the service answers in time. The request runs in another thread, because it may block forever."""
    answered = threading.Event()

    def ask(question: Callable[[], object]) -> None:
        try:
            question()
        finally:
            answered.set()

    if _state.ask is None:
        return False
    threading.Thread(target=ask, args=(_state.ask,), daemon=True).start()
    return answered.wait(ANSWER_SECONDS)
