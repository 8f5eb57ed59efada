"""Work spread over threads that leaves no trace of how many there were.

This file owns the two halves of that: BLAS is held to one thread, because it cuts products by their number and each
cut rounds differently; and independent pieces of work go to threads of our own, their results come in the order of the
pieces. It computes nothing. Invariant: sums of what `in_order` yields are the same bytes for every number of threads.

Not every BLAS lets itself be held: Accelerate of macOS is not reached by threadpoolctl.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

WORK_BYTES = 1 << 30
"""Of what all pieces that are computed at the same time take beside their results: eight windows of 2B."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Blas:
    """The libraries that multiply, and how many callers at work beside each other need them to do it in one thread."""

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._libraries: Any = None
        self._limit: Any = None

    def hold(self) -> None:
        with self._lock:
            if not self._holders:
                self._libraries = ThreadpoolController().select(user_api="blas")
                self._limit = self._libraries.limit(limits=1)
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._limit.restore_original_limits()
                self._libraries = self._limit = None

    def hold_in_this_thread(self) -> None:
        """Libraries built on OpenMP keep a limit for each thread; for the others this changes nothing."""
        with self._lock:
            if self._holders:
                self._libraries.limit(limits=1)


_BLAS = _Blas()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread in this process, until the last of those who asked for it is done."""
    _BLAS.hold()
    try:
        yield
    finally:
        _BLAS.release()


def threads(number: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads in which BLAS is held, too; make it and let it end inside of `single_threaded_blas`."""
    return ThreadPoolExecutor(number, thread_name_prefix=name, initializer=_BLAS.hold_in_this_thread)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_within(number: int, piece_bytes: int) -> int:
    """Return how many threads may be at work so that their pieces take WORK_BYTES at most; at least one."""
    return max(1, min(number, WORK_BYTES // max(1, piece_bytes)))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yield what a function returns for each item, in the order of the items.

    Args:
        function: called in several threads at once; NumPy treats floating-point errors there as in the caller's.
        items: taken one after the other, in the calling thread.
        num_threads: at work; so many results and one more wait to be taken.
    """
    if num_threads <= 1:
        yield from map(function, items)
        return
    treatment = np.geterr()

    def call(item: Item) -> Result:
        with np.errstate(**treatment):
            return function(item)

    pending: deque[Future[Result]] = deque()
    with threads(num_threads, "ordered") as pool:
        try:
            for item in items:
                pending.append(pool.submit(call, item))
                if len(pending) > num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
