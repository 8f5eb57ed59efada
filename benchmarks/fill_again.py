#!/usr/bin/env python3
"""How soon the first token of a fill comes when the file was filled before, in an earlier process.

This file owns what is filled and timed. Invariant: every fill runs in a process of its own that has just loaded the
model, and the result is refused where an answer from the disk differs in a token from one without.

    python benchmarks/fill_again.py --model codegemma-2b-q4 --tokens 2000

It goes the way that `cg-local fill` goes (`LocalModel.infill`, the store of K and V). Each fill is of the same file:
the gap lies in the middle of it, or near its end; it is filled again as it is, and after a line was typed at the gap.
The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cg_local import SamplingParams
from cg_local.bench.cards import machine_card, model_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.kv_store import KVStore
from cg_local.prompts import ORDERS
from cg_local.runtime import LocalModel, load

Result = dict[str, Any]
TYPED = "value = first + second\n"
GAPS = {"middle": 0.5, "end": 0.9}
"""Where the gap lies, as a share of the file's tokens."""
CHANGES = ("same", "typed")
WORDS = ("number", "list", "of", "the", "returns", "value", "in", "file", "print", "name", "and", "class", "a", "line")
ANSWER_TOKENS = 8


def main() -> None:
    """Measure all ways and print how they compare."""
    options = _parser().parse_args()
    if options.store is not None:
        print(json.dumps(_fill(options)))
        return
    ways = [(gap, order) for order in options.order for gap in options.gap]
    rounds = [{f"{order} {gap}": _round(gap, order, options) for gap, order in ways} for _ in range(options.repeat)]
    figures: Result = {}
    for way in rounds[0]:
        first = spread([found[way]["first"]["first_token_seconds"] for found in rounds])
        figures[way] = {"first": {"seconds": first, "tokens": rounds[0][way]["first"]["prompt_tokens"]}}
        for change in CHANGES:
            seconds = [found[way][change]["first_token_seconds"] for found in rounds]
            shares = [
                now / found[way]["first"]["first_token_seconds"] for now, found in zip(seconds, rounds, strict=True)
            ]
            again = rounds[0][way][change]
            computed = again["prompt_tokens"] - again["cached_tokens"]
            figures[way][change] = {"seconds": spread(seconds), "share": spread(shares), "computed_tokens": computed}
            share = figures[way][change]["share"]["median"]
            how = f"{first['median']:>8.3f} s  then {spread(seconds)['median']:>8.3f} s  {share:>6.3f} x"
            print(f"{way:<12}{change:<7}{how}  {computed:>6,} tokens computed", file=sys.stderr)
    result = {
        "benchmark": {"name": "fill_again", "repeat": options.repeat, "threads": usable_cores()},
        "model": model_card(Path(options.model)),
        "machine": machine_card(),
        "figures": figures,
    }
    print(json.dumps(result))


def _round(gap: str, order: str, options: argparse.Namespace) -> Result:
    """Fill a file, fill it again, and fill it after a line was typed, each in a process of its own."""
    found: Result = {}
    with TemporaryDirectory(prefix="cg-local-fill-", dir=options.work, ignore_cleanup_errors=True) as work:
        for change in ("first", *CHANGES):
            found[change] = _process(work, change, gap, order, options)
        if options.check:
            cold = _process(str(Path(work, "empty")), "typed", gap, order, options)
            if cold["answer"] != found["typed"]["answer"]:
                sys.exit("fill_again: the answer from the disk differs from the cold one; report this")
    if found["first"]["answer"] != found["same"]["answer"]:
        sys.exit("fill_again: the answer from the disk differs from the cold one; report this")
    return found


def _process(store: str, change: str, gap: str, order: str, options: argparse.Namespace) -> Result:
    command = [sys.executable, __file__, "--store", store, "--change", change, "--gap", gap, "--order", order]
    command += ["--model", options.model, "--tokens", str(options.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: Result = json.loads(done.stdout)
    return result


def _fill(options: argparse.Namespace) -> Result:
    model = load(options.model, max_context=options.tokens + 256)
    model.use_kv_store(KVStore(Path(options.store)))
    before, after = _file(model, options.tokens, GAPS[options.gap[0]])
    before += TYPED if options.change == "typed" else ""
    params = SamplingParams(max_tokens=ANSWER_TOKENS)
    started = time.perf_counter()
    stream = model.infill(before, after, "file.py", order=options.order[0], params=params, stream=True)
    opened_at = time.perf_counter()
    for _ in stream:
        pass
    result = stream.result
    model.save_prefix()
    # What happens before the stream is there, the restored pages included, and from there to the first token.
    first_token_seconds = opened_at - started + result.prefill_seconds
    names = ("prompt_tokens", "cached_tokens")
    answer = {"answer": result.token_ids, "first_token_seconds": first_token_seconds}
    return {**answer, **{name: value for name, value in asdict(result).items() if name in names}}


def _file(model: LocalModel, num_tokens: int, share: float) -> tuple[str, str]:
    """A file of about so many tokens, cut at a line near a share of them."""
    random = np.random.default_rng(0)
    lines, total = list[str](), 0
    while total < num_tokens - 40:
        lines.append(f"    {' '.join(random.choice(WORDS, 8))}\n")
        total += len(model.tokenizer.encode(lines[-1]))
    place = int(len(lines) * share)
    return "".join(lines[:place]), "".join(lines[place:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--tokens", type=int, default=2000, help="of the file")
    parser.add_argument("--gap", nargs="+", choices=tuple(GAPS), default=list(GAPS), help="where the gap lies")
    parser.add_argument("--order", nargs="+", choices=ORDERS, default=list(ORDERS), help="of the prompt")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; each figure is their median")
    parser.add_argument("--check", action="store_true", help="compare with the changed file's answer from nothing, too")
    parser.add_argument("--work", help="where the store lies meanwhile; default: the system's temporary folder")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--change", choices=("first", *CHANGES), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
