"""K and V of the last answer, written to disk while the next question is typed.

This file owns the thread that does so. Invariant: it runs only while the main thread waits for the user, because
nothing else may use the model meanwhile.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cg_local.runtime import LocalModel


class PrefixSaver:
    """Saves in the background."""

    def __init__(self) -> None:
        """Begin with nothing to save."""
        self._thread: threading.Thread | None = None
        self._should_stop = threading.Event()

    def begin(self, model: LocalModel) -> None:
        """Start writing what the model has computed last and the store does not know."""
        self._should_stop.clear()
        # No daemon: a process that ends meanwhile waits for the rest, which takes a fraction of a second.
        self._thread = threading.Thread(target=model.save_prefix, args=(self._should_stop.is_set,), name="save-prefix")
        self._thread.start()

    def end(self, *, is_complete: bool = False) -> None:
        """Wait until the thread is done.

        Args:
            is_complete: let it write the rest; else it stops at the next page, and a later answer's turn writes it.
        """
        if self._thread is not None:
            if not is_complete:
                self._should_stop.set()
            self._thread.join()
            self._thread = None
