"""The terminal below the questions: answers, notes, progress.

This file owns what is written to the terminal while no question is edited. Invariant: everything goes through one
output, the progress line is gone before anything else is written, and keys pressed meanwhile are not shown, yet kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator

from prompt_toolkit.output import Output, create_output
from rich.cells import cell_len, set_cell_size

from cg_local.cli.repl.ink import COLORS, PLAIN, Ink, ink_level
from cg_local.cli.repl.markdown_inline import Span
from cg_local.cli.repl.word_wrapper import WordWrapper
from cg_local.cli.terminal_text import visible_text

PROGRESS_SECONDS = 0.4
"""A wait is explained from here on, and so often."""


class Screen:
    """Writes to the terminal.

    Args:
        is_plain: no Markdown, no colours, no progress.

    Attributes:
        ink: draws styles.
        is_terminal: answers go to a terminal, and not into a file.
        is_rendering: answers are shown as Markdown.
        is_wrapping: prose is broken into lines at words.
    """

    def __init__(self, *, is_plain: bool = False) -> None:
        self.is_terminal = sys.stdout.isatty()
        level = PLAIN if is_plain else ink_level(self.is_terminal)
        # A console of Windows that knows no escape sequences would show them.
        self._output = create_output(sys.stdout)
        # Where answers go to a file, it shall hold nothing else.
        self._aside = self._output if self.is_terminal else create_output(sys.stderr)
        if os.name == "nt" and type(self._output).__name__ == "Win32Output":
            level = PLAIN
        self.ink = Ink(level)
        self.is_rendering = self.is_wrapping = level != PLAIN
        self._has_progress = level != PLAIN and self.is_terminal
        self._lock = threading.Lock()
        self._is_progress_shown = False

    def columns(self) -> int:
        """Return the terminal's width, 0 where lines are not to be broken."""
        return shutil.get_terminal_size().columns if self.is_wrapping else 0

    def write(self, text: str) -> None:
        """Write a part of an answer, fit for the terminal (`terminal_text`) if there is one."""
        self._write(self._output, text)

    def write_aside(self, text: str) -> None:
        """Write what belongs to no answer; it goes to stderr where answers go to a file."""
        self._write(self._aside, text)

    def _write(self, output: Output, text: str) -> None:
        if text:
            with self._lock:
                output.write_raw(text)
                output.flush()

    def say(self, text: str = "", *kinds: str) -> None:
        """Write a line of the program's own; what a model or file wrote in it is made fit."""
        for line in visible_text(text).split("\n"):
            columns = self.columns()
            if columns and cell_len(line) >= columns:
                words = WordWrapper(self.write_aside, self.columns, self.ink)
                words.begin()
                words.put([Span(line, kinds)])
                words.end()
            else:
                self.write_aside(self.ink.draw(line, *kinds) + "\n")

    def fitted(self, text: str) -> str:
        """Return a text cut to one line of the terminal, with an ellipsis in the place of what is cut."""
        if not 0 < self.columns() <= cell_len(text):
            return text
        return set_cell_size(text, max(self.columns() - 2, 0)).rstrip() + "…"

    def note(self, text: str) -> None:
        """Tell something in passing."""
        self.say(text, "note")

    def warn(self, text: str) -> None:
        """Tell what the user should know."""
        self.say(text, "warning")

    def error(self, text: str) -> None:
        """Tell what did not work, in one line."""
        self.say(" ".join(text.split()), "error")

    def clear(self) -> None:
        """Empty the screen."""
        if self.ink.level != PLAIN:
            self._output.erase_screen()
            self._output.cursor_goto(0, 0)
            self._output.flush()

    def send_sequence(self, sequence: str) -> bool:
        """Send an escape sequence to a terminal that knows some; return whether it was sent."""
        if self.ink.level == PLAIN or not self.is_terminal:
            return False
        self.write(sequence)
        return True

    @contextlib.contextmanager
    def progress(self, describe: Callable[[float], str]) -> Iterator[Callable[[], None]]:
        """Show a line that changes while something is waited for; gives what takes it away.

        Args:
            describe: from the seconds waited to the line.
        """
        if not self._has_progress:
            yield lambda: None
            return
        ended, started = threading.Event(), time.monotonic()

        def show() -> None:
            while not ended.wait(PROGRESS_SECONDS):
                self._show_progress(describe(time.monotonic() - started), ended)

        def end() -> None:
            ended.set()
            self._clear_progress()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield end
        finally:
            end()
            thread.join()

    def _show_progress(self, text: str, ended: threading.Event) -> None:
        with self._lock:
            if not ended.is_set():
                line = self.ink.draw(text[: shutil.get_terminal_size().columns - 1], "note")
                self._output.write_raw(f"\r{line}\x1b[K")
                self._output.flush()
                self._is_progress_shown = True

    def _clear_progress(self) -> None:
        with self._lock:
            if self._is_progress_shown:
                self._output.write_raw("\r\x1b[K")
                self._output.flush()
                self._is_progress_shown = False

    @property
    def has_colors(self) -> bool:
        """Whether colours are shown."""
        return self.ink.level == COLORS
