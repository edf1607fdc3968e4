"""A block of code that ends when its time is over, with what was done so far."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Iterator

AGAIN_SECONDS = 2.0  # a compiler may catch the first exception as one of its own


class OutOfTimeError(Exception):
    """The block took longer than it may."""


@contextmanager
def time_limit(seconds: float | None, reason: str) -> Iterator[None]:
    """Raise :class:`OutOfTimeError` with `reason` in the block after `seconds`; None is no limit.

    A signal interrupts Python code and what it waits for, not a call inside a C library: that one ends first. Only the
    main thread of a Unix process gets it; elsewhere nothing is interrupted.
    """
    interruptible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not interruptible:
        yield
        return

    def stop(number, frame):
        raise OutOfTimeError(reason)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
