#!/usr/bin/env python3
"""How soon the first token comes when a conversation goes on in a new process, with its K and V on disk and without.

This file owns what is timed and how. Invariant: every figure comes from a process of its own that has just loaded the
model, and the result is refused where the answer from the disk differs in a token or a log-probability.

    python benchmarks/resume_speed.py --model codegemma-2b-q4 --history 1500 --repeat 3

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_loading import load, model_path, one_line, quantized_folder

from cg_local.bench.cards import machine_card, model_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.config import EngineConfig, SamplingParams
from cg_local.errors import BenchmarkError, CgLocalError

Result = dict[str, Any]
FIGURES = ("cold_seconds", "same_process_seconds", "resume_seconds", "restore_seconds", "save_seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the figures and the result."""
    options = _parser().parse_args(arguments)
    try:
        with quantized_folder(model_path(options.model), options.scheme) as folder:
            if options.turn:
                print(json.dumps(turn(folder, options)))
                return 0
            result = measure(folder, options)
    except (CgLocalError, OSError) as error:
        print(f"resume_speed: {one_line(error)}", file=sys.stderr)
        return 1
    for name, figure in result["figures"].items():
        print(f"{name:<24}{figure['median']:>9.3f} s   {figure['min']:.3f} to {figure['max']:.3f}", file=sys.stderr)
    print(f"{'resume / cold':<24}{result['resume_share']['median']:>9.3f}", file=sys.stderr)
    print(json.dumps(result))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> Result:
    """Time cold and resumed turns in turns, each round with an empty store."""
    rounds = []
    for _ in range(options.repeat):
        with TemporaryDirectory(prefix="cg-local-resume-", dir=options.work, ignore_cleanup_errors=True) as store:
            first, cold, resumed = (_process(folder, kind, store, options) for kind in ("first", "cold", "resume"))
        if not cold["answer"] == resumed["answer"] == first["answer"]:
            raise BenchmarkError("the answer from the disk differs from the cold one; report this")
        rounds.append(
            {
                "cold_seconds": cold["first_token_seconds"],
                "same_process_seconds": first["first_token_seconds"],
                "resume_seconds": resumed["first_token_seconds"],
                "restore_seconds": resumed["restore_seconds"],
                "save_seconds": first["save_seconds"],
            }
        )
    return {
        "benchmark": {"name": "resume_speed", "repeat": options.repeat, "threads": options.threads or usable_cores()},
        "model": model_card(folder),
        "machine": machine_card(),
        "tokens": {"history": options.history, "question": options.question, "restored": resumed["restored_tokens"]},
        "stored_bytes": first["stored_bytes"],
        "figures": {name: spread([figures[name] for figures in rounds]) for name in FIGURES},
        "resume_share": spread([figures["resume_seconds"] / figures["cold_seconds"] for figures in rounds]),
    }


def turn(folder: Path, options: argparse.Namespace) -> Result:
    """Answer one question behind a history, in this process.

    The kind "first" computes the history as a turn of its own, stores it and then asks; "cold" computes all; "resume"
    takes the history from the store.
    """
    import numpy as np

    from cg_local.kv_store import KVStore
    from cg_local.prefix_transfer import PrefixTransfer

    loaded = load(
        folder, EngineConfig(max_context=options.history + options.question + 64, num_threads=options.threads)
    )
    engine = loaded.engine
    transfer = PrefixTransfer(engine, KVStore(Path(options.store)), "benchmark")
    random = np.random.default_rng(options.seed)
    ids = [2, *random.integers(200, engine.vocab_size, options.history + options.question - 1).tolist()]
    result: Result = {}
    if options.turn == "first":
        _answer(engine, ids[: options.history])
        started = time.perf_counter()
        result["stored_bytes"] = transfer.save(ids[: options.history])
        result["save_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    if options.turn == "resume":
        result["restored_tokens"] = transfer.restore(ids)
    result["restore_seconds"] = time.perf_counter() - started
    result["answer"], first_token_at = _answer(engine, ids)
    return {**result, "first_token_seconds": first_token_at - started}


def _answer(engine: Any, ids: list[int]) -> tuple[list[Any], float]:
    """Return tokens and log-probabilities of a short answer, and when the first one came."""
    sequence = engine.add(ids, SamplingParams(max_tokens=8))
    while not engine.step():
        pass
    first_token_at = time.perf_counter()
    engine.run()
    return [sequence.completion_ids, sequence.logprobs], first_token_at


def _process(folder: Path, kind: str, store: str, options: argparse.Namespace) -> Result:
    command = [sys.executable, __file__, "--turn", kind, "--store", store, "--model", str(folder)]
    for name in ("scheme", "history", "question", "seed", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchmarkError(f"the process of the {kind} turn failed with status {done.returncode}; see above")
    result: Result = json.loads(done.stdout)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="nano", help="a model folder, published weights, or nano")
    parser.add_argument("--scheme", default="q4", choices=("q4", "q8", "bf16"))
    parser.add_argument("--history", type=int, default=1500, help="tokens before the question")
    parser.add_argument("--question", type=int, default=32, help="tokens of the question")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; each figure is their median")
    parser.add_argument("--threads", type=int, help="of the kernels; default: as many as cores")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    parser.add_argument("--work", help="where the store lies meanwhile; default: the system's temporary folder")
    parser.add_argument("--turn", choices=("first", "cold", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
