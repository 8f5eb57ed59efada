"""The clipboard, through the terminal or through a program of the platform.

This file owns the ways there. Invariant: nothing is reported as copied that no way took.

Source: xterm's control sequences, OSC 52 (the terminal sets the clipboard, over ssh too).
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

MAX_SEQUENCE_BYTES = 74_994
"""Of text: several terminals drop a longer OSC 52; source: hterm's and xterm's bound of 100,000 base64 digits."""

_PROGRAMS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "darwin": (("pbcopy",),),
    "win32": (("clip",),),
}
_UNIX_PROGRAMS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)


def copy_text(text: str, send_sequence: Callable[[str], bool]) -> str | None:
    """Copy a text.

    Args:
        text: what to copy.
        send_sequence: sends an escape sequence to the terminal, if it knows some.

    Returns:
        How it was copied; None if no way took it.
    """
    for command in _commands():
        if _run(command, text):
            return command[0]
    data = text.encode("utf-8", errors="replace")
    if len(data) <= MAX_SEQUENCE_BYTES and send_sequence(_sequence(data)):
        return "the terminal (OSC 52)"
    return None


def _commands() -> list[tuple[str, ...]]:
    """The programs that reach this machine's own clipboard; over ssh only the terminal does."""
    if os.environ.get("SSH_CONNECTION"):
        return []
    commands: list[tuple[str, ...]] = list(_PROGRAMS.get(sys.platform, ()))
    if not commands:
        commands = [command for variable, command in _UNIX_PROGRAMS if os.environ.get(variable)]
    return [command for command in commands if shutil.which(command[0])]


def _run(command: tuple[str, ...], text: str) -> bool:
    # clip.exe reads UTF-16 and nothing else beyond ASCII.
    data = text.encode("utf-16" if command[0] == "clip" else "utf-8", errors="replace")
    try:
        done = subprocess.run(
            command, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _sequence(data: bytes) -> str:
    code = base64.b64encode(data).decode("ascii")
    sequence = f"\x1b]52;c;{code}\x07"
    # tmux hands a sequence on when it is wrapped; newer ones know OSC 52 themselves and take both.
    return f"\x1bPtmux;\x1b{sequence}\x1b\\{sequence}" if os.environ.get("TMUX") else sequence
