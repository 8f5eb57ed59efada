"""What prompt lookup gains where a text of the prompt is written again with small edits.

This file owns what is timed and how. Invariant: with guesses and without, the same tokens of the same edit are computed
in the same process, one after the other, and the figures are refused where a token differs.

No model decides the edit: after every step of the real network, the logit of the true next token is raised above all
others. So every kernel and the choice of tokens run as always, and the gain is that of a model which makes exactly
this edit; whether a model makes it is another question.

Run as a module it takes a request as JSON and prints raw figures, in a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.config import EngineConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.errors import BenchmarkError
from cg_local.kv_cache import KVCache
from cg_local.model import Model, SequenceSpan
from cg_local.model_folder import ModelFolder, open_model_folder
from cg_local.models import embedded_checkpoint
from cg_local.speculation import MAX_DRAFT_TOKENS
from cg_local.tokenizer import Tokenizer

EDITS = Path(__file__).parent / "edits"
AFTER_THE_OLD_TEXT = "\n\n# After the edit:\n\n"
# Written before the first round, so that it does not load kernels and map weights.
WARM_UP_TOKENS = 24


class ScriptedModel(Model):
    """A network that says what it is told: it computes its logits and raises that of the script's next token.

    Args:
        folder: of the model whose network this is.
        script: prompt and answer.
    """

    def __init__(self, folder: ModelFolder, script: Sequence[int]) -> None:
        """Bind the weights of the model again; they are mapped, so this copies nothing."""
        super().__init__(folder)
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


def scripted_engine(folder: ModelFolder, edit: Edit, num_threads: int | None) -> Engine:
    """Return an engine that writes an edit; the prompt is computed once, later rounds find it in the prefix cache."""
    script = edit.before + edit.after
    config = EngineConfig(max_context=len(script), num_threads=num_threads)
    return Engine(ScriptedModel(folder, script), config)


def run(engine: Engine, edit: Edit, draft_tokens: int, new_tokens: int | None = None) -> Round:
    """Write an edit once.

    Args:
        engine: from `scripted_engine`; what it learned of the times of steps it keeps.
        edit: what to write.
        draft_tokens: guesses of a step at most.
        new_tokens: stop after so many, None for all.

    Raises:
        BenchmarkError: the engine chose other tokens than the edit's.
    """
    engine.config = replace(engine.config, max_draft_tokens=draft_tokens)
    sequence = engine.add(edit.before, SamplingParams(max_tokens=new_tokens or len(edit.after)))
    while len(sequence.token_ids) == len(edit.before):
        engine.step()
    started = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - started
    if sequence.completion_ids != edit.after[: len(sequence.completion_ids)]:
        raise BenchmarkError(f"{edit.name}: the engine wrote other tokens than the edit's")
    counts = sequence.speculation
    return Round(seconds, counts.num_steps, counts.drafted, counts.accepted)


def measure_edits(folder: ModelFolder, *, num_threads: int | None) -> dict[str, Any]:
    """Time every edit once without and once with guesses, from its first token to its last.

    The edits are cut into the tokens of nano's tokenizer, so that a model with random weights and a made-up vocabulary
    writes them too; a smaller vocabulary than nano's uses its own.

    Args:
        folder: of the model.
        num_threads: of the kernels; None: what the engine chooses.

    Returns:
        For each edit the timed records "plain" and "guessed", and how many tokens were "drafted" and "accepted".
    """
    tokenizer = Tokenizer.from_file(embedded_checkpoint("nano") / "tokenizer.model")
    if tokenizer.vocab_size > folder.config.vocab_size:
        tokenizer = Tokenizer.from_file(folder.tokenizer_path)
    figures: dict[str, Any] = {}
    for edit in read_edits(EDITS, tokenizer, None):
        engine = scripted_engine(folder, edit, num_threads)
        for count in (0, MAX_DRAFT_TOKENS):
            run(engine, edit, count, WARM_UP_TOKENS)
        plain, guessed = run(engine, edit, 0), run(engine, edit, MAX_DRAFT_TOKENS)
        tokens = len(edit.after) - 1
        figures[edit.name] = {
            "plain": {"tokens": tokens, "seconds": [plain.seconds]},
            "guessed": {"tokens": tokens, "seconds": [guessed.seconds]},
            "num_steps": guessed.num_steps,
            "drafted": guessed.drafted,
            "accepted": guessed.accepted,
        }
    return figures


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(measure_edits(open_model_folder(request.pop("model")), **request)))
