"""The machine's limits, each measured by a process of its own.

This file owns starting those processes. `read_bandwidth` and `int8_peak` own the kernels. Invariant: no array and no
compiled kernel of a limit is in the process that measures a model.
"""

from __future__ import annotations

import json
import subprocess
import sys

from cg_local.bench.figures import Spread
from cg_local.errors import BenchmarkError

LIMIT_SECONDS = 300


class Roofline:
    """Measures what the machine can do at most."""

    def read_bandwidth(self) -> dict[str, Spread]:
        """Return GB/s (10**9 bytes) with one thread and with all, by their number as text."""
        return _result_of("cg_local.bench.read_bandwidth")

    def int8_peak(self) -> dict[str, Spread]:
        """Return 10**9 int8 operations a second with one thread and with all, by their number as text."""
        return _result_of("cg_local.bench.int8_peak")


def _result_of(module: str) -> dict[str, Spread]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", module], capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS
        )
        result: dict[str, Spread] = json.loads(done.stdout)
    except subprocess.CalledProcessError as cause:
        lines = cause.stderr.strip().splitlines() or ["it said nothing"]
        raise BenchmarkError(f"{module}: ended with status {cause.returncode}: {lines[-1]}") from cause
    except (subprocess.TimeoutExpired, ValueError) as cause:
        raise BenchmarkError(f"{module}: no result of the measurement: {cause}") from cause
    return result
