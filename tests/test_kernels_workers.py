"""Workers called by address: each runs once, arguments of another type are refused, the cache serves any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, types

from cg_local.kernels import attention
from cg_local.kernels.workers import load_arguments, pack, run_workers, take, worker_address

# A module with a worker, for fresh processes: they print its result, how often Numba compiled, and whether its
# registries were initialized.
PROGRAM = """
import sys
import numpy as np
from numba import njit, types
from numba.core import event
from cg_local.kernels import quick_load
from cg_local.kernels.workers import WORKER, load_arguments, pack, run_workers, worker_address

@njit(**WORKER)
def square(pointer, worker):
    numbers, = load_arguments(pointer)
    numbers[worker] = numbers[worker] ** 2

@njit(nogil=True, cache=True)
def run(address, numbers):
    run_workers(address, pack((numbers,)), 2)

quick_load.load_quickly(run)
numbers = np.array([3, 4])
with event.install_recorder("numba:compile") as recorder:
    run(worker_address(square, (types.Array(types.int64, 1, "C"),)), numbers)
print(*numbers, len(recorder.buffer), "numba.typed.dictimpl" in sys.modules)
"""

INTEGERS = types.Array(types.int64, 1, "C")
ARGUMENTS = INTEGERS, INTEGERS, types.int64


@njit(nogil=True, no_cpython_wrapper=True)
def _write_turns(pointer, worker):
    """Write to each worker's place which one it was to draw a number, and to the number's place whose it is."""
    turns, counter, first = load_arguments(pointer)
    turns[worker] = first + take(counter.ctypes.data, 1)


@njit
def _run(address, num_workers, first):
    turns, counter = np.full(num_workers, -1), np.full(1, 0)
    run_workers(address, pack((turns, counter, first)), num_workers)
    return turns, counter[0]


@njit
def _run_with_a_float(address):
    turns, counter = np.full(1, -1), np.full(1, 0)
    run_workers(address, pack((turns, counter, 1.5)), 1)
    return turns


@pytest.mark.parametrize("num_workers", range(1, numba.config.NUMBA_NUM_THREADS + 1))
def test_each_worker_runs_once_with_the_arguments_that_were_packed(num_workers: int) -> None:
    turns, count = _run(worker_address(_write_turns, ARGUMENTS), num_workers, 100)

    assert sorted(turns) == list(range(100, 100 + num_workers))
    assert count == num_workers


def test_arguments_of_a_type_that_no_worker_reads_are_refused() -> None:
    with pytest.raises(numba.TypingError, match="no worker was compiled for"):
        _run_with_a_float(worker_address(_write_turns, ARGUMENTS))


def test_address_is_looked_up_once_for_each_type_of_pages() -> None:
    half, codes = np.dtype(np.uint16), np.dtype(np.int8)

    assert attention.attend_address(half) == attention.attend_address(half) != attention.attend_address(codes)


def test_another_process_calls_the_cached_worker_without_compiling_or_preparing_to(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run() -> list[str]:
        return subprocess.check_output([sys.executable, str(program)], env=environment, text=True).split()

    *squares, num_compiled, _ = run()
    *loaded_squares, num_recompiled, is_prepared = run()

    assert squares == loaded_squares == ["9", "16"]
    assert int(num_compiled) > 0
    assert (num_recompiled, is_prepared) == ("0", "False")
