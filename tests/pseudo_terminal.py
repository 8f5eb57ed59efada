"""A process in a pseudo-terminal, and the screen that a person would see.

This file owns the terminal: it answers what programs ask of one, and keeps every byte. It asserts nothing but that what
is waited for comes. Invariant: `screen()` is what a terminal of this size shows of all output so far.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte
from command_line import environment

SCRIPTED_CHAT = Path(__file__).with_name("scripted_chat.py")
WAIT_SECONDS = 60.0
ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"
STATUS = re.compile(r" [^ ]+ · [0-9,]+ (of|tokens)")


class Terminal:
    """One process and its screen.

    Args:
        arguments: of the process.
        home: where its caches and data lie.
        columns, rows: of the terminal.
        variables: more of the environment; None removes one.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        *,
        columns: int = 80,
        rows: int = 40,
        variables: dict[str, str | None] | None = None,
    ) -> None:
        variables = {"TERM": "xterm-256color", "CG_LOCAL_STATE": str(home / "state"), **(variables or {})}
        merged: dict[str, str | None] = {**environment(home), "COLUMNS": None, "LINES": None, "NO_COLOR": None}
        merged |= {"SSH_CONNECTION": "1 2 3 4", "TMUX": None, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **variables}
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._screen.write_process_input = self._answer  # type: ignore[method-assign]
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        self._child = pexpect.spawn(
            arguments[0],
            list(arguments[1:]),
            env={name: value for name, value in merged.items() if value is not None},
            cwd=str(home),
            dimensions=(rows, columns),
            timeout=WAIT_SECONDS,
            echo=True,
        )
        self._child.delaybeforesend = None

    def _answer(self, data: str) -> None:
        self._child.send(data)

    def type(self, *keys: str) -> None:
        """Press keys, or type text."""
        for key in keys:
            self._child.send(key)

    def paste(self, text: str) -> None:
        """Paste as terminals do that mark what is pasted."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as dragging the window does."""
        self._screen.resize(rows, columns)
        self._child.setwinsize(rows, columns)

    def read(self, seconds: float = 0.02) -> None:
        """Take what the process wrote."""
        try:
            data = self._child.read_nonblocking(1 << 16, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return
        self.output += data
        # pyte takes the unknown "CSI > 4 ; m" (keyboard modes) for a style.
        self._stream.feed(re.sub(rb"\x1b\[[>=?][0-9;]*[mu]", b"", data))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Read until something is so."""
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < end, f"{what} did not come:\n" + "\n".join(self.screen())
            self.read()

    def wait_for(self, pattern: str) -> None:
        """Read until the screen shows a pattern."""
        self.wait(lambda: re.search(pattern, "\n".join(self.screen()), re.MULTILINE) is not None, pattern)

    def wait_for_prompt(self, number: int = 1) -> None:
        """Read until so many prompts have been shown, and the last one with its status line stands there."""

        def is_ready() -> bool:
            lines = self.screen()
            return self.num_prompts >= number and bool(lines) and STATUS.match(lines[-1]) is not None

        self.wait(is_ready, f"prompt {number}")

    @property
    def num_prompts(self) -> int:
        """How often editing has begun: each time the terminal is asked to mark what is pasted."""
        return self.output.count(b"\x1b[?2004h")

    def ask(self, text: str) -> None:
        """Type a line, send it, and wait until the next one can be typed."""
        number = self.num_prompts + 1
        self.type(text, ENTER)
        self.wait_for_prompt(number)

    def screen(self) -> list[str]:
        """Return the lines of the screen, without space at their ends and without empty lines at its end."""
        return _stripped(self._screen.display)

    def cells(self) -> list[list[Any]]:
        """Return the characters of the screen with their styles, by row and column."""
        columns = range(self._screen.columns)
        return [[self._screen.buffer[row][column] for column in columns] for row in range(self._screen.lines)]

    def everything(self) -> list[str]:
        """Return the screen and what has scrolled off it."""
        top = [_line(row, self._screen.columns) for row in self._screen.history.top]
        return _stripped([*top, *self._screen.display])

    def wait_for_end(self) -> int:
        """Read until the process has ended; return its status."""
        end = time.monotonic() + WAIT_SECONDS
        while self._child.isalive():
            assert time.monotonic() < end, "the process did not end:\n" + "\n".join(self.screen())
            self.read()
        self.read()
        self._child.close()
        return int(self._child.exitstatus if self._child.exitstatus is not None else -self._child.signalstatus)

    def kill(self) -> None:
        """End the process as a crash does."""
        self._child.kill(signal.SIGKILL)
        self.wait_for_end()

    def interrupt(self) -> None:
        """Press Ctrl-C while no question is edited: the terminal turns it into a signal."""
        self.type(CTRL_C)


def scripted_chat(model: Path, home: Path, *arguments: str, **options: Any) -> Terminal:
    """Start `cg-local chat` with the scripted model."""
    command = [sys.executable, str(SCRIPTED_CHAT), "chat", "--model", str(model), *arguments]
    return Terminal(command, home, **options)


def _line(row: Any, columns: int) -> str:
    return "".join(row[column].data for column in range(columns))


def _stripped(lines: Sequence[str]) -> list[str]:
    result = [line.rstrip() for line in lines]
    while result and not result[-1]:
        result.pop()
    return result


def masked(lines: Sequence[str]) -> str:
    """Return lines without what differs from run to run: times, speeds, memory, session ids."""
    text = "\n".join(lines) + "\n"
    for pattern, mask in (
        (r"[0-9.,]+ tokens/s", "N tokens/s"),
        (r"[0-9.,]+ [KMG]iB", "N MiB"),
        (r"[0-9.]+ s\b", "N s"),
        (r"\b[0-9a-f]{8}\b", "SESSION"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE"),
        (re.escape(os.sep) + r"\S*" + re.escape(os.sep), ""),
    ):
        text = re.sub(pattern, mask, text)
    return text
