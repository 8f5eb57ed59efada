"""How long a conversion will take and how much memory, from a sample of its own work.

This file owns the measurement. It writes nothing. Invariant: nothing in the result is a constant of some machine: every
rate was measured on this one, with the same encoder, blocks and threads as the conversion's.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cg_local.checkpoint import Checkpoint
from cg_local.packing import TILE_ROWS
from cg_local.quant.encoder import Encoder
from cg_local.quant.fixed_order import usable_cores
from cg_local.quant.methods import prepared
from cg_local.quant.options import Options
from cg_local.quant.schemes import GAIN_FORMAT, QuantizationPlan, TensorPlan
from cg_local.quant.slabs import block_bytes, rows_of

BLOCKS_PER_THREAD = 3
HASHED_BYTES = 16 << 20


@dataclass(frozen=True)
class Estimate:
    """What a conversion will take.

    Attributes:
        plan: of the conversion.
        seconds: of wall time, without waiting for a disk that is slower than the threads.
        peak_bytes: most memory that this process had resident while the sample was at work, which is the conversion's
            own pattern; None where the system does not say.
        num_threads: that it is for.
    """

    plan: QuantizationPlan
    seconds: float
    peak_bytes: int | None
    num_threads: int


def measure(checkpoint: Checkpoint, options: Options, num_threads: int | None) -> Estimate:
    """Choose the formats, encode some blocks of the largest matrix of each in all threads, and hash some bytes.

    Args:
        checkpoint: the source.
        options: of the conversion; not a sequential method's, whose time goes elsewhere.
        num_threads: as for `quantize`.
    """
    started = time.perf_counter()
    plan, encoder = prepared(checkpoint, options)
    preparing = time.perf_counter() - started  # the conversion will do the same again
    threads = num_threads or usable_cores()
    matrices: dict[str, list[TensorPlan]] = {}
    for tensor in plan.tensors:
        if tensor.format != GAIN_FORMAT:
            matrices.setdefault(tensor.format, []).append(tensor)
    with ThreadPoolExecutor(threads) as pool:
        seconds = sum(_encoding_seconds(encoder, tensors, threads, pool) for tensors in matrices.values())
    # The source once, what is written twice: for its slab and for its tensor.
    hashed_bytes = sum(path.stat().st_size for path in checkpoint.source_files) + 2 * plan.num_bytes
    seconds += preparing + hashed_bytes * _hash_seconds() / threads
    return Estimate(plan, seconds, _peak_bytes(), threads)


def _encoding_seconds(encoder: Encoder, tensors: Sequence[TensorPlan], threads: int, pool: ThreadPoolExecutor) -> float:
    """Time for all matrices of one format."""
    largest = max(tensors, key=_num_weights)
    rows = largest.shape[0]
    block_rows = min(rows_of(largest, block_bytes(threads)), rows)

    def encode(num_blocks: int) -> float:
        starts = [number * (rows - block_rows) // num_blocks // TILE_ROWS * TILE_ROWS for number in range(num_blocks)]
        started = time.perf_counter()
        for future in [pool.submit(encoder.encode, largest, start, start + block_rows) for start in starts]:
            future.result()
        return time.perf_counter() - started

    # The first calls load compiled code, or even make it, and get memory from the system, which happens once.
    encoder.prepare(largest)
    encode(threads)
    started = time.perf_counter()
    encoder.prepare(largest)
    preparing = time.perf_counter() - started
    per_weight = encode(BLOCKS_PER_THREAD * threads) / (BLOCKS_PER_THREAD * threads * block_rows * largest.shape[1])
    encoder.done(largest)
    return per_weight * sum(map(_num_weights, tensors)) + preparing * len(tensors) / threads


def _num_weights(tensor: TensorPlan) -> int:
    return math.prod(tensor.shape)


def _hash_seconds() -> float:
    """Time for one byte."""
    data = bytes(HASHED_BYTES)
    started = time.perf_counter()
    hashlib.sha256(data)
    return (time.perf_counter() - started) / HASHED_BYTES


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    # Kibibytes, on macOS bytes. Source: getrusage(2) of Linux and of macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
