"""Conversations, and their form as token ids.

Owns CodeGemma's chat format for training: which ids a conversation has and which of them the model learns to write.
Invariant: the ids before an answer are those that `cg_local.prompts.chat_prompt` makes of the same messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cg_local.training.fim import BOS_ID
from cg_local.training.packing import Packed

START_OF_TURN_ID, END_OF_TURN_ID = 106, 107
"""Ids of <start_of_turn> and <end_of_turn> in CodeGemma's vocabulary."""

FENCE = re.compile(r"^```(?:python|py)?\n(.*?)^```", re.MULTILINE | re.DOTALL)

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Turn:
    """A question and its answer, both without white space at their ends."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order.

    Attributes:
        kind: of the first task, for statistics: "write", "fix", "talk" ...
        turns: at least one.
    """

    kind: str
    turns: tuple[Turn, ...]


def fenced(code: str) -> str:
    """Code as a Markdown block."""
    return f"```python\n{code}\n```"


def code_blocks(answer: str) -> list[str]:
    """The contents of an answer's Markdown blocks, without the fences."""
    return FENCE.findall(answer + "\n")


def pack(conversation: Conversation, encode: Encode) -> Packed:
    """Encode a conversation; only the answers, each with the <end_of_turn> behind it, have weight.

    Args:
        conversation: what was said.
        encode: text to ids, without control ids.

    Source: chat template of google/codegemma-7b-it.
    """
    token_ids, weights = [BOS_ID], [0.0]
    for turn in conversation.turns:
        opening = [START_OF_TURN_ID, *encode(f"user\n{turn.question}"), END_OF_TURN_ID, *encode("\n")]
        opening += [START_OF_TURN_ID, *encode("model\n")]
        answer = [*encode(turn.answer), END_OF_TURN_ID]
        closing = encode("\n")
        token_ids += opening + answer + closing
        weights += [0.0] * len(opening) + [1.0] * len(answer) + [0.0] * len(closing)
    return Packed(np.array(token_ids, np.int32), np.array(weights, np.float32))
