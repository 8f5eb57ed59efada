"""How fast memory is read: a parallel sum over an array far larger than the caches.

This file owns the memory roofline. Invariant: it runs as a process of its own, so that its array counts in nobody
else's memory. Run as a module it prints the result as JSON.
"""

from __future__ import annotations

import json
import time

import numba
import numpy as np

import cg_local.kernels  # noqa: F401  (chooses the threads' kind, as in the engine)
from cg_local.bench.cards import last_level_cache_bytes
from cg_local.bench.figures import Spread, spread

# Each pass must come from memory: 16 times the last-level cache, and never so little that starting threads counts.
CACHE_MULTIPLE = 16
MIN_ARRAY_BYTES, MAX_ARRAY_BYTES = 512 << 20, 2 << 30
NUM_PASSES = 9


@numba.njit(nogil=True)
def sum_values(values):
    """Add up integers, whose order of addition is free, so that LLVM reads with full vectors.

    Args:
        values: uint64 [length].
    """
    total = np.uint64(0)
    for index in range(len(values)):
        total += values[index]
    return total


@numba.njit(parallel=True, nogil=True)
def sum_parts(values, totals):
    """Let each thread add up a part of its own.

    Args:
        values: uint64 [length].
        totals: uint64 [number of threads], written.
    """
    part = len(values) // len(totals)
    for index in numba.prange(len(totals)):
        totals[index] = sum_values(values[index * part : (index + 1) * part])


def measure_read_bandwidth(thread_counts: list[int], num_bytes: int | None = None) -> dict[str, Spread]:
    """Measure in GB/s (10**9 bytes).

    Args:
        thread_counts: how many threads to measure with.
        num_bytes: length of the array; None: chosen by the last-level cache.

    Returns:
        Median, min and max for each number of threads, by its decimal text.
    """
    if num_bytes is None:
        num_bytes = max(MIN_ARRAY_BYTES, min(MAX_ARRAY_BYTES, CACHE_MULTIPLE * (last_level_cache_bytes() or 0)))
    values = np.ones(num_bytes // 8, np.uint64)
    results = {}
    for num_threads in thread_counts:
        numba.set_num_threads(num_threads)
        totals = np.zeros(num_threads, np.uint64)
        sum_parts(values, totals)
        rates = []
        for _ in range(NUM_PASSES):
            started = time.perf_counter()
            sum_parts(values, totals)
            rates.append(num_bytes / (time.perf_counter() - started) / 1e9)
        results[str(num_threads)] = spread(rates)
    return results


if __name__ == "__main__":
    print(json.dumps(measure_read_bandwidth(sorted({1, numba.config.NUMBA_NUM_THREADS}))))
