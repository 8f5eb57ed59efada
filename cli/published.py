"""What the commands that read published weights share: where they lie, and how far the work is.

This file owns no command. Invariant: importing it loads nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[int, int, str], None]


def checkpoint_path(source: str) -> Path:
    """Return where the weights lie that an embedded name, or a path, stands for."""
    from cg_local.models import EMBEDDED, embedded_checkpoint

    return embedded_checkpoint(source) if source in EMBEDDED else Path(source)


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar with the time left on stderr; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        has_begun = False

        def show(done: int, total: int, tensor: str) -> None:
            nonlocal has_begun
            if not has_begun:  # what an interrupted run did took no time of this one's
                bar.reset(task, total=total, completed=done)
                has_begun = True
            bar.update(task, completed=done, total=total, description=tensor)

        yield show
