"""An interrupt that falls where Python would lose it, delivered again when that is over.

This file owns the handler of SIGINT. Invariant: no interrupt is lost. KeyboardInterrupt cannot pass through the C code
that calls back into LLVM's object cache, nor out of the destructors of its objects and the weak references that clean
up after an import and after events of the compiler: Python prints a traceback, goes on, and ends with status 0, or
LLVM's memory is freed twice. From the making of a class it comes as a RuntimeError, and modules make classes as they
are imported.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from types import FrameType

_RETRY_SECONDS = 0.05
# What stands in the names of files whose functions are on the stack then.
_FRAGILE = ("llvmlite", "<frozen importlib._bootstrap", "weakref.py", os.path.join("numba", "core", "event.py"))


def handle_interrupts() -> None:
    """Install the handler; to be called once, in the main thread."""
    signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_fragile(frame):
        raise KeyboardInterrupt
    retry = threading.Timer(_RETRY_SECONDS, _interrupt_again)
    retry.daemon = True
    retry.start()


def _interrupt_again() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # also ends a wait of the main thread
    else:
        _thread.interrupt_main()


def _is_fragile(frame: FrameType | None) -> bool:
    while frame is not None:
        if any(mark in frame.f_code.co_filename for mark in _FRAGILE):
            return True
        frame = frame.f_back
    return False
