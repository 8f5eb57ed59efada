#!/usr/bin/env python3
"""What prompt lookup gains where a text of the prompt is written again with small edits.

This file owns what is timed and how. Invariant: both engines compute the same tokens of the same edit in the same
process, one after the other in every round, and the result is refused where a token differs.

No model decides the edit: after every step of the real network, the logit of the true next token is raised above all
others. So every kernel and the choice of tokens run as always, and the gain is that of a model which makes exactly
this edit; whether a model makes it is another question.

    python benchmarks/prompt_lookup.py --model codegemma-2b-q4 --repeat 3

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from model_loading import load, model_path, one_line, quantized_folder

from cg_local.bench.cards import machine_card, model_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.bench.prompt_lookup import EDITS, WARM_UP_TOKENS, Edit, Round, read_edits, run, scripted_engine
from cg_local.config import EngineConfig
from cg_local.errors import CgLocalError
from cg_local.speculation import MAX_DRAFT_TOKENS
from cg_local.tokenizer import Tokenizer

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the figures and the result."""
    options = _parser().parse_args(arguments)
    try:
        with quantized_folder(model_path(options.model), options.scheme) as folder:
            result = measure(folder, options)
    except (CgLocalError, OSError) as error:
        print(f"prompt_lookup: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"median of the edits {result['speed_up']['median']:.2f} x", file=sys.stderr)
    print(json.dumps(result))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> Result:
    """Time every edit with and without guesses, in turns."""
    num_threads = options.threads or usable_cores()
    loaded = load(folder, EngineConfig(max_context=1, num_threads=num_threads))
    tokenizer = Tokenizer.from_file(model_path(options.tokenizer) / "tokenizer.model")
    edits = read_edits(options.edits, tokenizer, options.new_tokens)
    figures = {}
    for edit in edits:
        engine = scripted_engine(loaded.folder, edit, num_threads)
        for count in (0, options.draft_tokens):
            run(engine, edit, count, WARM_UP_TOKENS)
        rounds = [[run(engine, edit, count) for count in (0, options.draft_tokens)] for _ in range(options.repeat)]
        figures[edit.name] = summary(edit, *map(list, zip(*rounds, strict=True)))
        print_edit(edit.name, figures[edit.name])
    return {
        "benchmark": {"name": "prompt_lookup", "repeat": options.repeat, "threads": num_threads},
        "model": {**model_card(folder), "scheme": loaded.folder.scheme, "tokenizer": options.tokenizer},
        "machine": machine_card(),
        "edits": figures,
        "speed_up": spread([figure["speed_up"]["median"] for figure in figures.values()]),
    }


def summary(edit: Edit, plain: list[Round], guessed: list[Round]) -> Result:
    """Return the figures of one edit; speed-ups are taken within each round."""
    decoded = len(edit.after) - 1
    num_steps = statistics.median(round_.num_steps for round_ in guessed)
    drafted = statistics.median(round_.drafted for round_ in guessed)
    accepted = statistics.median(round_.accepted for round_ in guessed)
    return {
        "prompt_tokens": len(edit.before),
        "written_tokens": len(edit.after),
        "similarity": SequenceMatcher(None, edit.before[: len(edit.after)], edit.after, autojunk=False).ratio(),
        "plain_tokens_per_second": spread([decoded / round_.seconds for round_ in plain]),
        "tokens_per_second": spread([decoded / round_.seconds for round_ in guessed]),
        "speed_up": spread([one.seconds / other.seconds for one, other in zip(plain, guessed, strict=True)]),
        "accepted_share": accepted / drafted if drafted else 0.0,
        "tokens_per_step": decoded / num_steps,
        "rows_per_step": 1 + drafted / num_steps,
    }


def print_edit(name: str, figure: Result) -> None:
    """Print the figures of an edit for a person, to stderr."""
    speed_up = figure["speed_up"]
    print(
        f"{name:16} {figure['written_tokens']:4} tokens, {figure['plain_tokens_per_second']['median']:7.1f} -> "
        f"{figure['tokens_per_second']['median']:7.1f} tokens/s, {speed_up['median']:.2f} x "
        f"({speed_up['min']:.2f} to {speed_up['max']:.2f}), {figure['accepted_share']:.0%} of the guesses right, "
        f"{figure['tokens_per_step']:.2f} tokens and {figure['rows_per_step']:.2f} rows a step",
        file=sys.stderr,
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="nano", metavar="FOLDER|nano", help="a model folder or published weights (default: nano)")
    add("--scheme", default="q4", help="of the model folder, or to quantize published weights to (default: q4)")
    add("--tokenizer", default="nano", metavar="FOLDER|nano", help="whose tokens the edits are cut into")
    add("--edits", type=Path, default=EDITS, metavar="FOLDER", help="with NAME.before.txt and NAME.after.txt")
    add("--repeat", type=int, default=5, help="rounds of each edit (default: 5)")
    add("--new-tokens", type=int, help="write only so many tokens of each edit (default: all)")
    add("--draft-tokens", type=int, default=MAX_DRAFT_TOKENS, help=f"guesses a step (default: {MAX_DRAFT_TOKENS})")
    add("--threads", type=int, help="of the engine (default: all cores)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
