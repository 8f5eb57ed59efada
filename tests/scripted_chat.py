"""`cg-local` whose model answers by a script; everything but the arithmetic of the network is real.

    python tests/scripted_chat.py chat --model MODEL_FOLDER

This file owns the script. Invariant: what is answered follows from the tokens in the pages alone, so a page that the
engine took from the wrong place, or lost, changes the answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.model import SequenceSpan
from cg_local.model_folder import ModelFolder
from cg_local.tokenizer import Tokenizer

MARKDOWN = """\
# Adding two numbers

A *function* adds them, and `add(1, 2)` is **3**. The rest of this line is only here to be broken into two or more.

1. First the header,
2. then the body:
   - it returns the sum.

```python
def add(a, b):
    \"\"\"Add two numbers.\"\"\"
    return a + b  # the sum
```

| name | what it is |
|------|-----------:|
| `a`  | the first  |

> 数字を足す。
"""
HOSTILE = "red \x1b[31mtext\x1b[0m, title \x1b]0;owned\x07, reversed \u202egnp.exe, zero\u200bwidth, \x9b2J, bell\x07"
TOKEN_SECONDS = 0.0005
SLOW_TOKEN_SECONDS = 0.02
SLOW_PREFILL_SECONDS = 30.0


def answer_to(question: str, num_turns: int) -> str:
    """The script.

    Args:
        question: the last turn of the user.
        num_turns: turns of the conversation before it.
    """
    last = question.strip().split("\n")[-1].strip()
    word, _, rest = last.partition(" ")
    answers = {
        "say": rest,
        "markdown": MARKDOWN,
        "hostile": HOSTILE,
        "count": " ".join(map(str, range(1, 400))),
        "lines": f"{len(question.splitlines())} lines",
        "turns": f"{num_turns} turns before",
        "first": f"the first line is {question.splitlines()[0]!r}",
        "nothing": "",
    }
    return answers.get(word, f"You said: {last}")


class ScriptedModel:
    """In the place of `cg_local.model.Model`: writes tokens into its pages and reads the answer from there."""

    def __init__(self, folder: ModelFolder, *, activations: str = "int8") -> None:
        self.folder, self.config, self.activations = folder, folder.config, activations
        self.tokenizer = Tokenizer.from_file(folder.tokenizer_path)

    def forward(
        self,
        token_ids: NDArray[np.int32],
        spans: Sequence[SequenceSpan],
        cache: Any,
        rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        logits = np.zeros((len(rows), self.config.vocab_size), np.float32)
        for span in spans:
            end = span.first_position + span.num_tokens
            positions = np.arange(end)
            # A token is kept where the first column of its key would be, in all that is copied, stored and restored.
            line = cache.keys[0, :, 0, 0, :]
            places = span.block_table[positions // cache.page_size], positions % cache.page_size
            new = places[0][span.first_position :], places[1][span.first_position :]
            line[new] = token_ids[span.start : span.start + span.num_tokens]
            text = line[places].tolist()
            for number, row in enumerate(rows):
                place = int(row) - span.start
                if 0 <= place < span.num_tokens:
                    logits[number, self._next(text[: span.first_position + place + 1])] = 50.0
            self._take_time(text, span.num_tokens)
        return logits

    def _turns(self, token_ids: list[int]) -> list[list[int]]:
        """The turns, each from behind its start; the last one is the answer under way."""
        starts = [place for place, token in enumerate(token_ids) if token == self.tokenizer.start_of_turn_id]
        return [token_ids[a + 1 : b] for a, b in zip(starts, [*starts, len(token_ids)][1:], strict=True)]

    def _next(self, token_ids: list[int]) -> int:
        if self.tokenizer.fim_middle_id in token_ids:
            answer = [*self.tokenizer.encode("filled in"), self.tokenizer.end_of_turn_id]
            return answer[len(token_ids) - token_ids.index(self.tokenizer.fim_middle_id) - 1]
        turns = self._turns(token_ids)
        if len(turns) < 2:
            return self.tokenizer.end_of_turn_id
        opening = self.tokenizer.encode("model\n")
        question = self.tokenizer.decode(turns[-2]).partition("\n")[2]
        answer = [*self.tokenizer.encode(answer_to(question, len(turns) - 2)), self.tokenizer.end_of_turn_id]
        return answer[min(len(turns[-1]) - len(opening), len(answer) - 1)]

    def _take_time(self, text: list[int], num_tokens: int) -> None:
        turns = self._turns(text)
        question = self.tokenizer.decode(turns[-2] if len(turns) > 1 else text).strip().split("\n")[-1]
        seconds = SLOW_TOKEN_SECONDS if question.startswith("count") else TOKEN_SECONDS
        if question.startswith("slow") and num_tokens > 1:
            seconds = SLOW_PREFILL_SECONDS
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.01, seconds))


def main() -> None:
    """Run the command line with the scripted model."""
    from cg_local import runtime
    from cg_local.cli import app

    runtime.Model = ScriptedModel  # type: ignore[assignment,misc]
    app.main()


if __name__ == "__main__":
    main()
