#!/usr/bin/env python3
"""What was measured on: the machine card, the versions, and the read bandwidth of memory.

This file owns the description that every result carries. It measures no model. Invariant: `read_bandwidth` runs in a
process of its own, so that its arrays do not count in the memory of the benchmark.

    python benchmarks/machine.py            # the card with the bandwidth, as JSON
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("cg-local", "numpy", "numba", "llvmlite", "sentencepiece")
# Each pass must come from memory: 16 times the last-level cache, and never so little that starting threads counts.
CACHE_MULTIPLE = 16
MIN_ARRAY_BYTES, MAX_ARRAY_BYTES = 512 << 20, 2 << 30
NUM_PASSES = 9


def machine_card() -> dict[str, object]:
    """Describe processor, memory, system, versions and the state of the repository."""
    from cg_local.kernels import instruction_set_name

    return {
        "processor": _processor(),
        "num_cores": usable_cores(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "instruction_set": instruction_set_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the size of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def last_level_cache_bytes() -> int | None:
    """Return the size of the largest cache of the first core; None where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]] if text[-1] in "KM" else int(text))
    return max(sizes, default=None)


def read_bandwidth() -> dict[str, dict[str, float]]:
    """Measure how fast memory is read by one thread and by all, in a process of its own.

    Returns:
        For "1" and the number of cores (as text): median, min and max in GB/s (10**9 bytes).
    """
    command = [sys.executable, __file__, "--only-bandwidth"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def peak_resident_bytes() -> int:
    """Return the most memory this process has had resident, mapped weights included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux, bytes on macOS


def spread(values: list[float]) -> dict[str, float]:
    """Return median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _measure_bandwidth() -> dict[str, dict[str, float]]:
    import numba
    import numpy as np

    import cg_local.kernels  # noqa: F401  (chooses the threads' kind, as in the engine)

    @numba.njit
    def sum_values(values):  # type: ignore[no-untyped-def]
        total = np.uint64(0)
        # Integer additions may be reordered, so LLVM reads with full vectors.
        for index in range(len(values)):
            total += values[index]
        return total

    @numba.njit(parallel=True)
    def sum_parts(data, totals):  # type: ignore[no-untyped-def]
        part = len(data) // len(totals)
        for index in numba.prange(len(totals)):
            totals[index] = sum_values(data[index * part : (index + 1) * part])

    num_bytes = max(MIN_ARRAY_BYTES, min(MAX_ARRAY_BYTES, CACHE_MULTIPLE * (last_level_cache_bytes() or 0)))
    data = np.ones(num_bytes // 8, np.uint64)
    results = {}
    for num_threads in sorted({1, min(usable_cores(), numba.config.NUMBA_NUM_THREADS)}):
        numba.set_num_threads(num_threads)
        totals = np.zeros(num_threads, np.uint64)
        sum_parts(data, totals)
        rates = []
        for _ in range(NUM_PASSES):
            started = time.perf_counter()
            sum_parts(data, totals)
            rates.append(num_bytes / (time.perf_counter() - started) / 1e9)
        results[str(num_threads)] = spread(rates)
    return results


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this repository, with a plus sign where tracked files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, check=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


if __name__ == "__main__":
    if sys.argv[1:] == ["--only-bandwidth"]:
        print(json.dumps(_measure_bandwidth()))
    else:
        print(json.dumps({**machine_card(), "read_bandwidth_gb_per_second": read_bandwidth()}, indent=2))
