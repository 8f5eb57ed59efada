"""An interrupt that falls into a callback of the compiler, delivered again when the callback is over.

This file owns the handler of SIGINT. Invariant: no interrupt is lost. Python cannot raise KeyboardInterrupt through the
C code that calls back into LLVM's object cache: it would print a traceback, go on, and end with status 0.
"""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType

_RETRY_SECONDS = 0.05
_CALLBACKS = "executionengine.py"  # of llvmlite.binding


def handle_interrupts() -> None:
    """Install the handler; to be called once, in the main thread."""
    signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_in_callback(frame):
        raise KeyboardInterrupt
    retry = threading.Timer(_RETRY_SECONDS, _thread.interrupt_main)
    retry.daemon = True
    retry.start()


def _is_in_callback(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CALLBACKS):
            return True
        frame = frame.f_back
    return False
