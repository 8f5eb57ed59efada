#!/usr/bin/env python3
"""Speed of attention alone: prefill chunks and single tokens at several depths, beside the machine's limits.

This file owns shapes, depths and what counts as work. It loads no model. Invariant: the process that measures finds
all kernels compiled, and a decode step walks over layers whose K and V together do not fit in the last-level cache.

    python benchmarks/attention_speed.py --model 2b

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.bench.cards import machine_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.bench.roofline import Roofline
from cg_local.config import ModelConfig
from cg_local.kv_cache import KVCache, page_bytes

PAGE_SIZE = 16
CHUNK = 512
# Tokens before the chunk: its end lies at 512, 2,048 and 8,000.
PREFILL_DEPTHS = (0, 1536, 7488)
DECODE_DEPTHS = (128, 512, 2048, 8000)
SHAPES = {
    "2b": {"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 18, "hidden_size": 2048},
    "7b": {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 28, "hidden_size": 3072},
}
MATRIX_SIZE = 1536  # of the float32 product that stands for the processor's peak

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile in another process, measure in this one, print."""
    options = _parser().parse_args(arguments)
    if options.compile_only:
        measure(options)
        return 0
    own = [*(sys.argv[1:] if arguments is None else arguments)]
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, *own, "--compile-only", "--repeat", "1", "--layers", "1"], check=True)
    result: Figures = {"benchmark": {"name": "attention_speed", **vars(options)}, "machine": machine_card()}
    result["first_process_seconds"] = time.perf_counter() - started
    result["read_bandwidth_gb_per_second"] = Roofline().read_bandwidth()
    result |= measure(options)
    print_table(result)
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace) -> Figures:
    """Time both kernels at every depth."""
    import numba

    numba.set_num_threads(options.threads)
    config = shape_of(options.model, options.layers)
    cache = filled_cache(config, max(*options.depths, max(options.prefill) + CHUNK) + 1, options.kv_dtype)
    prefill = {str(depth): measure_prefill(cache, config, depth, options.repeat) for depth in options.prefill}
    decode = {str(depth): measure_decode(cache, config, depth, options) for depth in options.depths}
    return {"matrix_product_gflops": matrix_product_rate(options.repeat), "prefill": prefill, "decode": decode}


def shape_of(model: str, num_layers: int | None) -> ModelConfig:
    """Return a config of a published size, with fewer layers if asked."""
    values = {
        **SHAPES[model],
        "model_type": "gemma",
        "head_dim": 256,
        "intermediate_size": 16384,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "gelu_pytorch_tanh",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = ModelConfig.from_dict(values, model)
    return config if num_layers is None else replace(config, num_layers=num_layers)


def filled_cache(config: ModelConfig, num_tokens: int, kv_dtype: str) -> KVCache:
    """Return a cache of random K and V; only their finiteness matters to the speed."""
    cache = KVCache(config, num_pages=-(-num_tokens // PAGE_SIZE), page_size=PAGE_SIZE, dtype=kv_dtype)
    random = np.random.default_rng(0)
    block = random.standard_normal(cache.keys[0].size, dtype=np.float32)
    for pages in (cache.keys, cache.values):
        for layer in pages:
            if pages.dtype == np.int8:
                layer[:] = random.integers(0, 64, layer.shape, np.int8)
            else:
                stored = block.astype(np.float16).view(np.uint16) if pages.dtype == np.uint16 else block
                layer[:] = stored.reshape(layer.shape)
    return cache


def measure_prefill(cache: KVCache, config: ModelConfig, depth: int, repeat: int) -> Figures:
    """Time one chunk of CHUNK tokens in each layer; work is 4 operations per query, seen key and column."""
    seconds = time_layers(kernels.attend_prefill, cache, config, depth, CHUNK, repeat)
    pairs = CHUNK * depth + CHUNK * (CHUNK + 1) // 2
    operations = 4 * pairs * config.num_heads * config.head_dim
    return {
        "gflops": spread([operations / s / 1e9 for s in seconds]),
        "milliseconds_per_token": spread([1e3 * s / CHUNK * config.num_layers for s in seconds]),
    }


def measure_decode(cache: KVCache, config: ModelConfig, depth: int, options: argparse.Namespace) -> Figures:
    """Time one token at the end of `depth` tokens in each layer; the bytes are those of K and V."""
    seconds = time_layers(kernels.attend_decode, cache, config, depth - 1, 1, 4 * options.repeat)
    num_bytes = depth * page_bytes(config, 1, options.kv_dtype) / config.num_layers
    return {
        "gigabytes_per_second": spread([num_bytes / s / 1e9 for s in seconds]),
        "milliseconds_per_token": spread([1e3 * s * config.num_layers for s in seconds]),
    }


def time_layers(
    attention: Callable[..., None], cache: KVCache, config: ModelConfig, first: int, num_tokens: int, repeat: int
) -> list[float]:
    """Return the mean seconds of a layer, `repeat` times over all layers."""
    random = np.random.default_rng(1)
    q = random.standard_normal((num_tokens, config.num_heads, config.head_dim), dtype=np.float32)
    out = np.empty((num_tokens, config.num_heads * config.head_dim), np.float32)
    block_table: NDArray[np.int32] = np.arange(cache.num_pages, dtype=np.int32)
    scale = np.float32(1 / math.sqrt(config.head_dim))
    seconds = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        for layer in range(config.num_layers):
            attention(q, cache.keys[layer], cache.values[layer], block_table, first, scale, out)
        seconds.append((time.perf_counter() - started) / config.num_layers)
    return seconds[1:]


def matrix_product_rate(repeat: int) -> dict[str, float]:
    """Measure NumPy's float32 matrix product: what a tuned library reaches of the processor's peak."""
    a, b = np.random.default_rng(2).standard_normal((2, MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32)
    rates = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        a @ b
        rates.append(2 * MATRIX_SIZE**3 / (time.perf_counter() - started) / 1e9)
    return spread(rates[1:])


def print_table(result: Figures) -> None:
    """Print medians (and the best) for a person, to stderr."""
    peak = result["matrix_product_gflops"]["max"]
    bandwidth = max(rates["max"] for rates in result["read_bandwidth_gb_per_second"].values())
    lines = [
        f"NumPy's matrix product {peak:.1f} GFLOP/s, read bandwidth {bandwidth:.1f} GB/s, "
        f"first process {result['first_process_seconds']:.1f} s"
    ]
    for depth, figures in result["prefill"].items():
        rate, cost = figures["gflops"], figures["milliseconds_per_token"]
        lines.append(
            f"prefill at depth {depth:>5} {rate['median']:7.1f} ({rate['max']:.1f}) GFLOP/s, "
            f"{rate['max'] / peak:5.1%} of the product, {cost['min']:.3f} ms a token"
        )
    for depth, figures in result["decode"].items():
        rate, cost = figures["gigabytes_per_second"], figures["milliseconds_per_token"]
        lines.append(
            f"decode at depth {depth:>6} {rate['median']:7.1f} ({rate['max']:.1f}) GB/s, "
            f"{rate['max'] / bandwidth:5.1%} of bandwidth, {cost['min']:.3f} ms a token"
        )
    print("\n".join(lines), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", choices=tuple(SHAPES), default="2b", help="whose shape (default: 2b)")
    add("--layers", type=int, help="layers to walk over (default: the model's)")
    add("--repeat", type=int, default=5, help="rounds of each measurement (default: 5)")
    add("--threads", type=int, default=usable_cores(), help="of the kernels (default: all cores)")
    add("--prefill", type=_numbers, default=PREFILL_DEPTHS, help="tokens before a chunk (default: 0,1536,7488)")
    add("--depths", type=_numbers, default=DECODE_DEPTHS, help="tokens that one sees (default: 128,512,2048,8000)")
    add("--kv-dtype", choices=("float16", "float32", "int8"), default="float16", help="of K and V (default: float16)")
    add("--compile-only", action="store_true", help=argparse.SUPPRESS)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
