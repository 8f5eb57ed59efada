"""One request and its state, and what a step reports of it.

This file owns what is known of a sequence between two steps. It computes nothing; the engine changes it. Invariant: the
first num_computed tokens have K and V in the pages of the block table, and no token after them is taken for computed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from cg_local.config import SamplingParams
from cg_local.speculation import PromptLookup, SpeculationCounts

_sequence_ids = itertools.count()


@dataclass(eq=False)
class Sequence:
    """One request and its state.

    Attributes:
        token_ids: the prompt and every token chosen since.
        num_prompt_tokens: how many of them are the prompt.
        num_computed: how many have K and V in the pages.
        num_cached: how many of the prompt were found in the prefix cache.
        params: how to sample; stop_ids: tokens that end the sequence and are not part of its answer.
        block_table: its page ids.
        logprobs: of the chosen tokens, a stop token's included.
        stop_reason: None while running; then "stop_id", "max_tokens", "context_full" or "cancelled".
        stop_id: the token that ended it, if one did.
        lookup: who guesses its next tokens.
        speculation: how the guesses did.
    """

    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    stop_ids: frozenset[int]
    random: np.random.Generator
    max_new_tokens: int
    num_computed: int = 0
    num_cached: int = 0
    block_table: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str | None = None
    stop_id: int | None = None
    lookup: PromptLookup = field(default_factory=PromptLookup)
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
    sequence_id: int = field(default_factory=lambda: next(_sequence_ids))

    @property
    def completion_ids(self) -> list[int]:
        """The tokens of the answer so far, without a stop token."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        """Whether no further token will come."""
        return self.stop_reason is not None


@dataclass(frozen=True)
class TokenOutput:
    """A token chosen in a step.

    Attributes:
        sequence: whose it is; after the step's last output of it, `stop_reason` says whether it goes on.
        token_id: the token; a stop token is reported too, though it is not part of the answer.
        logprob: natural logarithm of the model's probability of it.
    """

    sequence: Sequence
    token_id: int
    logprob: float


@dataclass(frozen=True)
class ScheduledSpan:
    """What a step computes of one sequence.

    Attributes:
        sequence: the sequence.
        count: how many of its tokens, from the first that is not computed.
        draft: guesses of the tokens behind them; only where `count` reaches the last token.
    """

    sequence: Sequence
    count: int
    draft: list[int]

    @property
    def num_logits(self) -> int:
        """Tokens whose logits are needed: the last one and the draft, if the count reaches so far."""
        is_complete = self.sequence.num_computed + self.count == len(self.sequence.token_ids)
        return 1 + len(self.draft) if is_complete else 0
