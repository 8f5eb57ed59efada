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
def progress_bar(*, counts_bytes: bool = True) -> Iterator[Progress | None]:
    """A bar with the time left on stderr; nothing where stderr is no terminal.

    Args:
        counts_bytes: what is done are bytes, not steps. Where the number of all steps changes, other ones have begun.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = DownloadColumn(binary_units=True) if counts_bytes else MofNCompleteColumn()
    columns = (BarColumn(), count, TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        begun: int | None = None

        def show(done: int, total: int, tensor: str) -> None:
            nonlocal begun
            if begun != total:  # what an interrupted run did took no time of this one's
                bar.reset(task, total=total, completed=done)
                begun = total
            bar.update(task, completed=done, total=total, description=tensor)

        yield show
