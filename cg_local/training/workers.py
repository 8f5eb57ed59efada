"""Makes batches in several processes.

Owns the processes, and the order in which their blocks are handed on. What is in a block is `packing`'s work.
Invariant: the batches and their positions are those of the stream itself, whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from cg_local.errors import TrainingError
from cg_local.training.packing import Batch, BatchStream

OpenStream = Callable[[], BatchStream]

stream: BatchStream | None = None
"""The stream of a worker's process."""


def begin(open_stream: OpenStream) -> None:
    """Open the stream in a new process, which lives no longer than the one that began it and leaves Ctrl-C to that."""
    global stream
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    stream = open_stream()


def end_with_parent() -> None:
    """Wait until the parent is gone, killed perhaps, and end the process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def make_block(block: int, num_rows: int, sequence_length: int) -> list[Batch]:
    """The batches of one block; runs in a worker."""
    assert stream is not None
    return list(stream.batches(block, num_rows, sequence_length))


class WorkerStream(BatchStream):
    """A stream whose blocks are made ahead by processes."""

    def __init__(self, own: BatchStream, open_stream: OpenStream, num_workers: int) -> None:
        """Make the stream; the processes start with the first batch that is asked for.

        Args:
            own: the stream as this process has it.
            open_stream: opens the same stream in another process; it must be picklable.
            num_workers: processes, at least one.
        """
        super().__init__(own.files, own.encode, own.recipe, own.seed)
        self.open_stream, self.num_workers = open_stream, num_workers
        self.pool: ProcessPoolExecutor | None = None

    def blocks(self, first: int, num_rows: int, sequence_length: int) -> Iterator[Iterable[Batch]]:
        """The batches of each block from `first` on, without end.

        Raises:
            TrainingError: a process died.
        """
        if self.pool is None:
            # Not forked: JAX's threads in this process may hold locks that a copy of it would wait for without end.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.num_workers, context, begin, (self.open_stream,))
        waiting: deque[Future[list[Batch]]] = deque()
        try:
            while True:
                while len(waiting) < self.num_workers + 2:
                    waiting.append(self.pool.submit(make_block, first, num_rows, sequence_length))
                    first += 1
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that makes batches has ended, perhaps for want of memory. Set a smaller workers in [run]."
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes; blocks that are being made are lost."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None
