"""Holding Ctrl-C back while state changes that must change as a whole.

This file owns the short exchange of SIGINT's handler. It does not decide what an interrupt ends. Invariant: an
interrupt that comes meanwhile is delivered to the handler that was installed, once, as soon as the change is complete.

Python raises KeyboardInterrupt between any two instructions of the main thread, where no order of assignments keeps
several lists in step.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from signal import SIGINT
from types import FrameType
from typing import Any

# What `signal` wraps: turning handlers into enumerations and back is most of its time (79 us of a hold, 11 without).
_signals: Any = import_module("_signal" if "_signal" in sys.builtin_module_names else "signal")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Run the block to its end before an interrupt is delivered; for microseconds to a few milliseconds.

    Other threads are never interrupted, and an interrupt that the system handles or ignores is left to it.
    """
    handler = _signals.getsignal(SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[FrameType | None] = []
    try:
        _signals.signal(SIGINT, lambda number, frame: held.append(frame))
    except ValueError:  # a main thread, but of another interpreter
        yield
        return
    try:
        yield
    finally:
        _signals.signal(SIGINT, handler)
        if held:
            handler(SIGINT, held[0])
