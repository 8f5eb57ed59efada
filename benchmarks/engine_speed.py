#!/usr/bin/env python3
"""Speed of the engine on one model folder, beside the machine's read bandwidth measured in the same run.

This file owns what is timed and how. Invariant: bandwidth is measured before and after the model, so that a machine
that changed its pace in between shows it; no prompt of a prefill is in the prefix cache.

    python benchmarks/engine_speed.py --model codegemma-2b-q4 --repeat 3

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine_card, peak_resident_bytes, read_bandwidth, spread, usable_cores
from model_loading import LoadedModel, load, model_card, one_line

from cg_local.config import EngineConfig, SamplingParams
from cg_local.errors import CgLocalError
from cg_local.kv_cache import page_bytes
from cg_local.model_folder import ModelFolder

PREFILL_TOKENS = (128, 512, 2048)
DEPTHS = (0, 512, 2048)
FIRST_RANDOM_ID = 512  # behind control ids, white space and bytes in CodeGemma's layout
NUM_LOADS = 5

Result = dict[str, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the table and the result."""
    options = _parser().parse_args(arguments)
    try:
        result = measure(options)
    except (CgLocalError, OSError) as error:
        print(f"engine_speed: {one_line(error)}", file=sys.stderr)
        return 1
    print_table(result)
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace) -> Result:
    """Run everything in the order that disturbs least."""
    num_threads = options.threads or usable_cores()
    bandwidths = [read_bandwidth()]
    before_bytes = peak_resident_bytes()
    loaded, load_figures = measure_load(options, num_threads)
    random = np.random.default_rng(options.seed)
    # The first steps fetch compiled kernels and map the weights' pages; they belong to no figure but this one.
    warm_up = time.perf_counter()
    run(loaded, draw(loaded, random, 16), 2)
    load_figures["first_answer_seconds"] = time.perf_counter() - warm_up
    prefill = {str(n): measure_prefill(loaded, random, n, options.repeat) for n in options.prefill}
    decode = {str(d): measure_decode(loaded, random, d, options) for d in options.depths}
    bandwidths.append(read_bandwidth())
    peak_bytes = peak_resident_bytes()
    best = str(max(map(int, bandwidths[0])))
    # A run on fewer threads than cores is held against the bandwidth of all: it is the machine's limit.
    bandwidth = statistics.mean(b[best]["median"] for b in bandwidths) * 1e9
    for depth, figures in decode.items():
        num_bytes = bytes_per_token(loaded.folder, int(depth) + options.new_tokens // 2, loaded.engine.config)
        rate = figures["tokens_per_second"]["median"]
        figures["bytes_per_token"], figures["share_of_bandwidth"] = num_bytes, rate * num_bytes / bandwidth
    return {
        "benchmark": {"name": "engine_speed", "repeat": options.repeat, "threads": num_threads, "seed": options.seed},
        "model": {**model_card(options.model), "scheme": loaded.folder.scheme},
        "machine": machine_card(),
        "read_bandwidth_gb_per_second": {"before": bandwidths[0], "after": bandwidths[1]},
        "load": load_figures,
        "prefill": prefill,
        "decode": decode,
        "memory": {
            "peak_resident_bytes": peak_bytes,
            "resident_before_load_bytes": before_bytes,
            "kv_cache_bytes": loaded.engine.cache.keys.nbytes + loaded.engine.cache.values.nbytes,
            "scratch_bytes": loaded.engine.model.scratch_bytes,
        },
    }


def measure_load(options: argparse.Namespace, num_threads: int) -> tuple[LoadedModel, dict[str, Any]]:
    """Open the model several times; the file is in the page cache from the second time on."""
    needed = max(*options.prefill, *(depth + options.new_tokens + 1 for depth in options.depths)) + 1
    config = EngineConfig(max_context=needed, num_threads=num_threads, kv_dtype=options.kv_dtype)
    seconds = []
    for _ in range(NUM_LOADS):
        started = time.perf_counter()
        loaded = load(options.model, config)
        seconds.append(time.perf_counter() - started)
    return loaded, {"first_seconds": seconds[0], "warm_seconds": spread(seconds[1:])}


def measure_prefill(
    loaded: LoadedModel, random: np.random.Generator, num_tokens: int, repeat: int
) -> dict[str, object]:
    """Time prompts of fresh random tokens, from `add` to the first chosen token."""
    rates = []
    for _ in range(repeat):
        token_ids = draw(loaded, random, num_tokens)
        started = time.perf_counter()
        run(loaded, token_ids, 1)
        rates.append(num_tokens / (time.perf_counter() - started))
    return {"tokens_per_second": spread(rates)}


def measure_decode(
    loaded: LoadedModel, random: np.random.Generator, depth: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Time single tokens after `depth` tokens of context (BOS alone at depth 0), new_tokens of them a round."""
    token_ids = draw(loaded, random, max(depth, 1))
    round_rates, step_seconds = [], []
    for _ in range(options.repeat):
        params = SamplingParams(max_tokens=options.new_tokens + 1)
        sequence = loaded.engine.add(token_ids, params)
        while sequence.num_computed < len(token_ids):  # from the second round on, most of it is a prefix hit
            loaded.engine.step()
        times = []
        while not sequence.is_finished:
            started = time.perf_counter()
            loaded.engine.step()
            times.append(time.perf_counter() - started)
        round_rates.append(len(times) / sum(times))
        step_seconds += times
    return {"tokens_per_second": spread(round_rates), "milliseconds_per_token": spread([1e3 * s for s in step_seconds])}


def run(loaded: LoadedModel, token_ids: list[int], new_tokens: int) -> None:
    """Answer a prompt with so many tokens and no stop."""
    loaded.engine.add(token_ids, SamplingParams(max_tokens=new_tokens))
    loaded.engine.run()


def draw(loaded: LoadedModel, random: np.random.Generator, num_tokens: int) -> list[int]:
    """Return BOS and random tokens: a prompt that no earlier one begins with."""
    size = loaded.folder.config.vocab_size
    first = min(FIRST_RANDOM_ID, size // 2)
    drawn: list[int] = random.integers(first, size, num_tokens - 1).tolist()
    return [loaded.folder.config.bos_token_id, *drawn]


def bytes_per_token(folder: ModelFolder, depth: int, config: EngineConfig) -> int:
    """Return what one decode step must read: every weight once, and K and V of `depth` tokens.

    The embedding counts once, as the output head; the one row looked up for the input does not.
    """
    weights = sum(matrix.num_bytes for matrix in folder.matrices.values())
    if "lm_head.weight" in folder.matrices:
        weights -= folder.matrices["model.embed_tokens.weight"].num_bytes
    gains = sum(gain.nbytes for gain in folder.gains.values())
    return int(weights + gains) + depth * page_bytes(folder.config, 1, config.kv_dtype_for(folder.scheme))


def print_table(result: Result) -> None:
    """Print the figures for a person, to stderr."""

    def show(*cells: object) -> None:
        print("  ".join(str(cell) for cell in cells), file=sys.stderr)

    machine, memory, load_figures = result["machine"], result["memory"], result["load"]
    show(f"{machine['processor']}, {machine['instruction_set']}, {machine['num_cores']} cores")
    for when, rates in result["read_bandwidth_gb_per_second"].items():
        for threads, rate in rates.items():
            show(f"read bandwidth {when:<6} {threads:>3} threads {_rate(rate)} GB/s")
    show(f"load, warm              {load_figures['warm_seconds']['median']:.3f} s")
    for num_tokens, figures in result["prefill"].items():
        show(f"prefill {num_tokens:>6} tokens   {_rate(figures['tokens_per_second'])} tokens/s")
    for depth, figures in result["decode"].items():
        rate, share = figures["tokens_per_second"], figures["share_of_bandwidth"]
        size = figures["bytes_per_token"] / 1e6
        show(f"decode at depth {depth:>6} {_rate(rate)} tokens/s, {size:,.1f} MB a token, {share:.1%} of bandwidth")
    show(f"peak resident memory    {memory['peak_resident_bytes'] / 2**20:,.0f} MiB")


def _rate(values: dict[str, float]) -> str:
    return f"{values['median']:9.2f} ({values['min']:.2f} to {values['max']:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FOLDER", help="model folder, as `cg-local quantize` writes it")
    add("--repeat", type=int, default=5, help="rounds of each measurement (default: 5)")
    add("--threads", type=int, help="of the engine (default: all cores)")
    add("--prefill", type=_numbers, default=PREFILL_TOKENS, help="prompt lengths (default: 128,512,2048)")
    add("--depths", type=_numbers, default=DEPTHS, help="context before decoding (default: 0,512,2048)")
    add("--new-tokens", type=int, default=32, help="tokens of a decode round (default: 32)")
    add("--kv-dtype", choices=("float16", "float32", "int8"), default="float16", help="of K and V (default: float16)")
    add("--seed", type=int, default=0, help="of the random prompts (default: 0)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
