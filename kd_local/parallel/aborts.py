"""The end of a process by SIGABRT: because the runtime lost another process, or for a reason of its own.

The JAX runtime aborts a process when another one is lost, from a thread of its own, and so do failed checks of XLA and
of C libraries. The coordination service distinguishes the two: after a loss this process gets no answer from it, since
the thread that receives its answers is the one that aborts.

After a loss the main thread has `GRACE_SECONDS` to end the program in its own way. Then the message of `on_abort` is
printed, and the process exits with status 1. In any other case the Python stacks are printed, and the abort proceeds:
the process is ended by the signal and leaves a core file if the system keeps them.

The state is global because the action of a signal is: one for the whole process. The action itself only wakes a thread
and waits for it. The aborting thread may hold locks of the runtime, so all other work is done by that thread.
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
    """Sets the message printed when this process ends because another one is lost.

    Args:
        message: called at that time, in a thread of its own.
    """
    _state.message = message


def watch_aborts() -> None:
    """Handles SIGABRT from now on. Until `ask_before_blaming` is called, every abort counts as a loss."""
    if _state.process is None:
        threading.Thread(target=_explain, name="aborts", daemon=True).start()
    _state.process = os.getpid()
    _libc.signal(signal.SIGABRT, _aborted)


def ask_before_blaming(ask: Callable[[], object]) -> None:
    """Sets a request to the coordination service. If it is answered, even by an error, no process is lost."""
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
    """Whether the question is answered in time. It is asked in another thread, since it may block for ever."""
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
