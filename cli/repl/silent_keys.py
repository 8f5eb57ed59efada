"""Keys that are pressed while something is computed.

This file owns the terminal's settings meanwhile. It imports nothing that takes time, because a chat begins with it.
Invariant: the settings are as before at the end; what was typed is neither shown nor lost, and Ctrl-C stays a signal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent_keys() -> Iterator[None]:
    """Let the terminal not show what is typed while something is computed; it waits for the next prompt."""
    if os.environ.get("TERM") == "dumb":  # its lines are read as the terminal hands them over
        yield
        return
    try:
        import termios

        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (ImportError, OSError, ValueError, AttributeError):  # Windows shows nothing by itself
        yield
        return
    except termios.error:
        yield
        return
    changed = [*before]
    # Lines typed ahead stay as they were typed: an Enter that became a line feed would break the line, not send it.
    # NOFLSH: Ctrl-C would throw away what the terminal has not shown yet, and what was typed ahead.
    changed[0] = before[0] & ~termios.ICRNL
    changed[3] = (before[3] & ~(termios.ECHO | termios.ICANON)) | termios.NOFLSH
    try:
        termios.tcsetattr(handle, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSANOW, before)
