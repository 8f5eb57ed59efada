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
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from model_loading import LoadedModel, load, model_card, model_path, one_line, quantized_folder
from numpy.typing import NDArray

from cg_local.bench.cards import machine_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.config import EngineConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CgLocalError
from cg_local.kv_cache import KVCache
from cg_local.model import Model, SequenceSpan
from cg_local.speculation import MAX_DRAFT_TOKENS
from cg_local.tokenizer import Tokenizer

EDITS = Path(__file__).parent / "edits"
AFTER_THE_OLD_TEXT = "\n\n# After the edit:\n\n"
# Written before the first round, so that it does not load kernels and map weights.
WARM_UP_TOKENS = 24

Result = dict[str, Any]


class ScriptedModel(Model):
    """A network that says what it is told: it computes its logits and raises that of the script's next token.

    Args:
        loaded: a loaded model, whose network this is.
        script: prompt and answer.
    """

    def __init__(self, loaded: LoadedModel, script: Sequence[int]) -> None:
        """Bind the weights of the model again; they are mapped, so this copies nothing."""
        super().__init__(loaded.folder)
        self.script = script

    def forward(
        self,
        token_ids: NDArray[np.int32],
        spans: Sequence[SequenceSpan],
        cache: KVCache,
        logit_rows: NDArray[np.integer],
    ) -> NDArray[np.float32]:
        """Compute a step of one sequence; every row's largest logit is that of the token after it in the script."""
        logits = super().forward(token_ids, spans, cache, logit_rows)
        for logits_row, row in zip(logits, logit_rows, strict=True):
            # A wrong guess has a row too; what comes after it is not used.
            following = spans[0].first_position + int(row) + 1
            if following < len(self.script):
                logits_row[self.script[following]] = logits_row.max() + 1
        return logits


@dataclass(frozen=True)
class Edit:
    """A text before and after, as token ids."""

    name: str
    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Round:
    """One answer: seconds from its first token to its last, and how its guesses did."""

    seconds: float
    num_steps: int
    drafted: int
    accepted: int


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
        engine = scripted_engine(loaded, edit, num_threads)
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


def read_edits(folder: Path, tokenizer: Tokenizer, new_tokens: int | None) -> list[Edit]:
    """Read NAME.before.txt and NAME.after.txt of a folder.

    Args:
        folder: the texts.
        tokenizer: cuts them.
        new_tokens: cut what is to be written after so many; None: all of it.
    """
    edits = []
    for path in sorted(folder.glob("*.before.txt")):
        name = path.name.removesuffix(".before.txt")
        before, after = (folder.joinpath(f"{name}.{side}.txt").read_text("utf-8") for side in ("before", "after"))
        edits.append(
            Edit(
                name=name,
                before=[tokenizer.bos_id, *tokenizer.encode(before + AFTER_THE_OLD_TEXT)],
                after=tokenizer.encode(after)[:new_tokens],
            )
        )
    return edits


def scripted_engine(loaded: LoadedModel, edit: Edit, num_threads: int) -> Engine:
    """Return an engine that writes an edit; the prompt is computed once, later rounds find it in the prefix cache."""
    script = edit.before + edit.after
    config = EngineConfig(max_context=len(script), num_threads=num_threads)
    return Engine(ScriptedModel(loaded, script), config)


def run(engine: Engine, edit: Edit, draft_tokens: int, new_tokens: int | None = None) -> Round:
    """Write an edit once.

    Args:
        engine: from `scripted_engine`; what it learned of the times of steps it keeps.
        edit: what to write.
        draft_tokens: guesses of a step at most.
        new_tokens: stop after so many, None for all.

    Raises:
        CgLocalError: the engine chose other tokens than the edit's.
    """
    engine.config = replace(engine.config, max_draft_tokens=draft_tokens)
    sequence = engine.add(edit.before, SamplingParams(max_tokens=new_tokens or len(edit.after)))
    while len(sequence.token_ids) == len(edit.before):
        engine.step()
    started = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - started
    if sequence.completion_ids != edit.after[: len(sequence.completion_ids)]:
        raise CgLocalError(f"{edit.name}: the engine wrote other tokens than the edit's")
    counts = sequence.speculation
    return Round(seconds, counts.num_steps, counts.drafted, counts.accepted)


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
