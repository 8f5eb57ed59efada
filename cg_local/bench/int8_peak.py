"""How many int8 operations a second the processor can do: the instruction set's own dot product, fed by registers.

This file owns the kernel of the compute roofline. Invariant: nothing but dot products is in the loop, and none of them
can be left out by the compiler: an empty piece of assembly makes each operand unknown to it, at no cost.

Run as a module it prints the result as JSON, so that a measuring process need not compile anything.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cg_local.bench.figures import Spread, spread
from cg_local.kernels.instruction_set import InstructionSet, select_instruction_set

I32, I64 = ir.IntType(32), ir.IntType(64)
# Enough independent sums to hide a dot product's latency (4 to 5 cycles, two a cycle), few enough for 16 registers.
NUM_CHAINS = 10
NUM_PASSES, PASS_SECONDS = 9, 0.05
PORTABLE_LENGTH, OFFSETS = 4096, 8


def measure_int8_peak(thread_counts: list[int]) -> dict[str, Spread]:
    """Measure operations a second in 10**9, a multiplication and an addition counted as 2.

    Args:
        thread_counts: how many threads to measure with.

    Returns:
        Median, min and max for each number of threads, by its decimal text.
    """
    set_ = select_instruction_set()
    if set_ is None:
        chain, products = portable_chain, PORTABLE_LENGTH
    else:
        chain, products = dot_chain(set_), NUM_CHAINS * set_.register_rows * 4
    run, codes = _on_threads(chain), np.ones(PORTABLE_LENGTH + OFFSETS, np.int8)

    def seconds_of(num_passes: int, num_threads: int) -> float:
        started = time.perf_counter()
        run(num_passes, num_threads, codes)
        return time.perf_counter() - started

    results = {}
    for num_threads in thread_counts:
        numba.set_num_threads(num_threads)
        seconds_of(1, num_threads)
        num_passes, seconds = 1, 0.0
        while seconds < PASS_SECONDS:
            num_passes = max(2 * num_passes, int(num_passes * PASS_SECONDS / max(seconds, 1e-6)))
            seconds = seconds_of(num_passes, num_threads)
        operations = 2e-9 * products * num_passes * num_threads
        rates = [operations / seconds_of(num_passes, num_threads) for _ in range(NUM_PASSES)]
        results[str(num_threads)] = spread(rates)
    return results


def _on_threads(chain: Any) -> Any:
    @numba.njit(parallel=True)
    def run(num_passes, num_threads, codes):
        total = 0
        for _ in numba.prange(num_threads):
            total += chain(num_passes, codes)
        return total

    return run


def dot_chain(set_: InstructionSet) -> Any:
    """Compile a loop of dot products of ones.

    Args:
        set_: whose dot product.

    Returns:
        A jitted function of the number of passes and of codes (unused); it returns the sum of all products, which are
        1 each: NUM_CHAINS * 4 for each int32 lane and pass.
    """
    lanes = ir.VectorType(I32, set_.register_rows)

    @intrinsic
    def pass_over(typing_context, num_passes):
        def generate(context, builder, signature, arguments):
            return _generate_loop(builder, set_, lanes, arguments[0])

        return types.int64(types.int64), generate

    @numba.njit
    def chain(num_passes, codes):
        return pass_over(num_passes)

    return chain


def _generate_loop(builder: Any, set_: InstructionSet, lanes: Any, num_passes: Any) -> Any:
    """Write a loop of NUM_CHAINS independent dot products; return the sum of all their lanes."""
    constraint = _register_class(set_)
    hide = ir.InlineAsm(ir.FunctionType(lanes, [lanes]), "", f"={constraint},0", side_effect=True)
    before = builder.block
    loop, end = builder.append_basic_block("dots"), builder.append_basic_block("dots_end")
    builder.branch(loop)
    builder.position_at_end(loop)
    count = builder.phi(I64)
    sums = [builder.phi(lanes) for _ in range(NUM_CHAINS)]
    weights = builder.phi(lanes)
    ones = ir.Constant(lanes, [0x01010101] * lanes.count)
    # One register holds the weights of all: each dot product sees them after the next piece of assembly.
    hidden, results = weights, []
    for total in sums:
        hidden = builder.call(hide, [hidden])
        results.append(set_.dot(builder, total, hidden, ones))
    left = builder.sub(count, ir.Constant(I64, 1))
    builder.cbranch(builder.icmp_signed(">", left, ir.Constant(I64, 0)), loop, end)
    for phi, result in zip(sums, results, strict=True):
        phi.add_incoming(ir.Constant(lanes, [0] * lanes.count), before)
        phi.add_incoming(result, loop)
    for phi, start, later in ((weights, ones, hidden), (count, num_passes, left)):
        phi.add_incoming(start, before)
        phi.add_incoming(later, loop)
    builder.position_at_end(end)
    total = ir.Constant(lanes, [0] * lanes.count)
    for result in results:
        total = builder.add(total, result)
    scalar = ir.Constant(I64, 0)
    for lane in range(lanes.count):
        scalar = builder.add(scalar, builder.sext(builder.extract_element(total, ir.Constant(I32, lane)), I64))
    return scalar


def _register_class(set_: InstructionSet) -> str:
    """LLVM's letter for a vector register: of SSE and AVX, of AVX-512, of NEON."""
    if set_.name.startswith("neon"):
        return "w"
    return "v" if set_.register_rows == 16 else "x"


@numba.njit
def portable_chain(num_passes, codes):
    """Multiply and add plainly; every pass reads at another offset, so that none repeats the one before.

    Args:
        num_passes: PORTABLE_LENGTH products each.
        codes: int8 [PORTABLE_LENGTH + OFFSETS].
    """
    total = np.int64(0)
    for number in range(num_passes):
        part, offset = np.int32(0), number % OFFSETS
        for column in range(PORTABLE_LENGTH):
            part += np.int32(codes[column]) * np.int32(codes[column + offset])
        total += part
    return total


if __name__ == "__main__":
    cores = numba.config.NUMBA_NUM_THREADS
    print(json.dumps(measure_int8_peak(sorted({1, cores}))))
