"""The questions typed before, on disk.

This file owns their file: one JSON string a line, readable only by the user. Invariant: a line is appended in one
write, so that two processes never mix theirs, and whatever cannot be read or written costs the history only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import History

MAX_FILE_BYTES = 1 << 20
"""A longer file is cut to its newer half when a session begins."""
MAX_ENTRY_CHARACTERS = 20_000
"""Longer texts, pasted ones, are not kept."""


class QuestionHistory(History):
    """History of prompt-toolkit over the file.

    Args:
        path: of the file; None: only in memory.
        on_notice: called once if the file cannot be read or written.
    """

    def __init__(self, path: Path | None, on_notice: Callable[[str], None]) -> None:
        super().__init__()
        self._path, self._notice = path, on_notice
        self.is_kept = True

    def load_history_strings(self) -> Iterable[str]:
        """Return the texts, the newest first."""
        if self._path is None:
            return []
        try:
            self._shorten(self._path)
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as cause:
            self._give_up(cause)
            return []
        return reversed([text for text in map(_decoded, data.splitlines()) if text])

    def store_string(self, string: str) -> None:
        """Append a text; one that begins with a space is not kept, as in shells."""
        if self._path is None or not self.is_kept or string.startswith(" ") or len(string) > MAX_ENTRY_CHARACTERS:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(handle, "wb", buffering=0) as file:
                file.write(json.dumps(string).encode("ascii") + b"\n")
        except OSError as cause:
            self._give_up(cause)

    def append_string(self, string: str) -> None:
        """Take a text, unless it is the last one again."""
        strings = self.get_strings()
        if string.strip() and (not strings or strings[-1] != string):
            super().append_string(string)

    def _shorten(self, path: Path) -> None:
        if path.stat().st_size <= MAX_FILE_BYTES:
            return
        kept = path.read_bytes()[-MAX_FILE_BYTES // 2 :].partition(b"\n")[2]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "wb") as file:
            file.write(kept)
        os.replace(partial, path)

    def _give_up(self, cause: OSError) -> None:
        self._notice(f"{self._path}: the history cannot be kept ({cause.strerror}); make the folder writable")
        self._path = None


def _decoded(line: bytes) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
