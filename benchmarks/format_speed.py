#!/usr/bin/env python3
"""Speed of one matrix product in each weight format, side by side in one process.

This file owns shapes and rounds. It loads no model. Invariant: every format is measured in every round, and the weights
of a product of few tokens come from memory: as many matrices take turns as do not fit in the last-level cache.

    python benchmarks/format_speed.py --rows 2048 --columns 16384

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.bench.cards import machine_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.model import Activations, Projections
from cg_local.packing import CODEBOOK_SIZES, FORMATS, PackedMatrix, pack_codebook, part_layout
from cg_local.workspace import Workspace

BASELINE = "c4g32"
# From this many tokens on a product does not wait for memory.
MANY_TOKENS = 32

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    numba.set_num_threads(options.threads)
    result: Figures = {"benchmark": {"name": "format_speed", **vars(options)}, "machine": machine_card()}
    result["instruction_set"] = kernels.instruction_set_name()
    result["tokens"] = {str(tokens): measure(options, tokens) for tokens in options.tokens}
    print_table(result)
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace, num_tokens: int) -> Figures:
    """Time every format in turns; return milliseconds a product and the speed relative to the same round's BASELINE."""
    shape = options.rows, options.columns
    x = np.random.default_rng(1).standard_normal((num_tokens, options.columns), dtype=np.float32)
    num_bytes = 0 if num_tokens >= MANY_TOKENS else options.megabytes * 10**6
    products = {format: _products(format, shape, num_bytes, x) for format in options.formats}
    seconds: dict[str, list[float]] = {format: [] for format in options.formats}
    for _ in range(options.repeat + 1):
        for format, run in products.items():
            started = time.perf_counter()
            count = run()
            seconds[format].append((time.perf_counter() - started) / count)
    # The first round compiles and touches memory.
    return {
        format: {
            "milliseconds": spread([1e3 * s for s in seconds[format][1:]]),
            "speed": spread([base / s for s, base in zip(seconds[format][1:], seconds[BASELINE][1:], strict=True)]),
        }
        for format in options.formats
    }


def random_matrix(format: str, shape: tuple[int, int], seed: int) -> PackedMatrix:
    """Return a matrix of random codes; its values do not matter to the speed."""
    random = np.random.default_rng(seed)
    parts: dict[str, NDArray[Any]] = {}
    for name, (dtype, part_shape) in part_layout(format, shape).items():
        if dtype == np.float16:
            parts[name] = np.full(part_shape, 1e-3, np.float16)
        elif name == "codebook":
            parts[name] = pack_codebook(np.linspace(-63, 63, CODEBOOK_SIZES[format]).astype(np.int64))
        else:
            values = random.integers(1, 100, part_shape, np.uint8).astype(dtype)
            parts[name] = values + np.uint16(0x3F00) if format == "bf16" else values
    return PackedMatrix(format, shape, parts)


def _products(format: str, shape: tuple[int, int], num_bytes: int, x: NDArray[np.float32]) -> Any:
    """Return a function that multiplies x by matrices of num_bytes bytes in all, at least one, and counts them."""
    first = random_matrix(format, shape, 0)
    count = max(1, num_bytes // first.num_bytes)
    matrices = [first, *(random_matrix(format, shape, seed) for seed in range(1, count))]
    workspace = Workspace()
    activations = Activations(x, workspace, "x")
    projections = [Projections([matrix], ["y"]) for matrix in matrices]

    def run() -> int:
        for projection in projections:
            projection(activations, workspace)
        return count

    return run


def print_table(result: Figures) -> None:
    """Print medians for a person, to stderr."""
    for tokens, formats in result["tokens"].items():
        for format, figures in formats.items():
            time_, speed = figures["milliseconds"], figures["speed"]
            print(
                f"{tokens:>4} tokens {format}: {time_['median']:8.3f} ms, {speed['median']:.3f} of {BASELINE}'s speed "
                f"({speed['min']:.3f} to {speed['max']:.3f})",
                file=sys.stderr,
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, default=16384, help="of the matrix: outputs (default: 16384)")
    add("--columns", type=int, default=2048, help="of the matrix: inputs (default: 2048)")
    add("--tokens", type=_numbers, default=(1, 512), help="of the input (default: 1,512)")
    add("--formats", type=_names, default=FORMATS, help=f"among them {BASELINE} (default: all)")
    add("--repeat", type=int, default=9, help="rounds (default: 9)")
    add("--threads", type=int, default=usable_cores(), help="of the kernels (default: all cores)")
    add("--megabytes", type=int, default=256, help="of weights that take turns for few tokens (default: 256)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if BASELINE not in names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"take {BASELINE} and others of {', '.join(FORMATS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
