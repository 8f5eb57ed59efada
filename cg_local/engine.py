"""Steps over sequences: chunked prefill, decode, fork and cancel, in token ids only.

This file owns which tokens are computed next and the life of a sequence. It knows no text. Invariant: after every step
(and after every error) the pages in use are exactly those of the block tables of the sequences that are not finished.

The engine belongs to one thread: Numba's thread pools do not bear two callers at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

from cg_local.block_manager import BlockManager
from cg_local.config import EngineConfig, SamplingParams
from cg_local.errors import CapacityError, ConfigError, PromptError
from cg_local.kernels.attention import PARTITION
from cg_local.kv_cache import KVCache
from cg_local.memory import available_bytes, readable_size
from cg_local.model import Model, SequenceSpan
from cg_local.sampling import SampledToken, sample

_sequence_ids = itertools.count()
# `Engine.logits` computes so much of its result at a time.
LOGITS_CHUNK_BYTES = 1 << 26


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
        sequence: whose it is; its `stop_reason` says whether it was the last.
        token_id: the token; a stop token is reported too, though it is not part of the answer.
        logprob: natural logarithm of the model's probability of it.
    """

    sequence: Sequence
    token_id: int
    logprob: float


class Engine:
    """Runs a model over a paged K/V cache.

    Args:
        model: the network.
        config: memory and chunk sizes.
        vocab_size: ids from here on are never chosen; some distributions pad the embedding with unused rows. None: all
            rows of the embedding.

    Raises:
        ConfigError: a page size that does not divide 256, more context than the model has, or more threads than the
            machine gave Numba.
    """

    def __init__(self, model: Model, config: EngineConfig | None = None, *, vocab_size: int | None = None) -> None:
        self.model = model
        self.config = config or EngineConfig()
        self.max_context = check_context(self.config.max_context, model.config.max_position_embeddings)
        self.vocab_size = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
        page_size = self.config.page_size
        if PARTITION % page_size:
            raise ConfigError(f"page_size is {page_size}; it must divide {PARTITION}")
        _set_threads(self.config.num_threads)
        num_pages = self.config.num_pages or -(-self.max_context // page_size)
        dtype = self.config.kv_dtype_for(model.folder.scheme)
        self.cache = KVCache(model.config, num_pages=num_pages, page_size=page_size, dtype=dtype)
        self.block_manager = BlockManager(num_pages, page_size)
        self.sequences: list[Sequence] = []

    def add(
        self, token_ids: Collection[int], params: SamplingParams | None = None, stop_ids: Collection[int] = ()
    ) -> Sequence:
        """Take up a request; its prefill begins with the next step.

        Args:
            token_ids: the prompt, at least one id, BOS included.
            params: how to sample; default greedy.
            stop_ids: tokens that end the answer.

        Raises:
            PromptError: an empty prompt, or an id outside the vocabulary.
            CapacityError: the prompt leaves no room for one token in the context.
        """
        prompt = [int(token_id) for token_id in token_ids]
        self._check_prompt(prompt)
        params = params or SamplingParams()
        sequence = Sequence(
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            params=params,
            stop_ids=frozenset(stop_ids),
            random=np.random.default_rng(params.seed),
            max_new_tokens=min(params.max_tokens, self.max_context - len(prompt)),
        )
        sequence.block_table = self.block_manager.match_prefix(prompt)
        sequence.num_computed = sequence.num_cached = len(sequence.block_table) * self.config.page_size
        self.sequences.append(sequence)
        return sequence

    def step(self) -> list[TokenOutput]:
        """Compute the next tokens of all sequences: one decode token each, and up to one chunk of prompts.

        Returns:
            The tokens chosen; empty after a chunk that did not finish a prompt.

        Raises:
            CapacityError: no sequence can go on because too few pages are free. Cancel one and step again.
        """
        scheduled = self._schedule()
        if not scheduled:
            return []
        spans, token_ids, start = [], [], 0
        for sequence, count in scheduled:
            table = np.array(sequence.block_table, np.int32)
            spans.append(SequenceSpan(start, count, sequence.num_computed, table))
            token_ids += sequence.token_ids[sequence.num_computed : sequence.num_computed + count]
            start += count
        complete = [s for s, count in scheduled if s.num_computed + count == len(s.token_ids)]
        rows = [
            span.start + span.num_tokens - 1
            for span, (s, count) in zip(spans, scheduled, strict=True)
            if s.num_computed + count == len(s.token_ids)
        ]
        logits = self.model.forward(np.array(token_ids, np.int32), spans, self.cache, np.array(rows, np.int64))
        # All tokens are drawn before any sequence changes: an interrupt meanwhile leaves the step to be repeated.
        drawn = [self._draw(sequence, row) for sequence, row in zip(complete, logits, strict=True)]
        for sequence, count in scheduled:
            self._advance(sequence, count)
        return [self._append(sequence, sampled) for sequence, sampled in zip(complete, drawn, strict=True)]

    def run(self, on_token: Callable[[TokenOutput], None] | None = None) -> None:
        """Step until every sequence is finished; `on_token` sees each chosen token."""
        while self.sequences:
            for output in self.step():
                if on_token is not None:
                    on_token(output)

    def fork(self, sequence: Sequence, params: SamplingParams | None = None) -> Sequence:
        """Return a second sequence with the same tokens so far; the K and V are shared until one of them writes.

        Args:
            sequence: a sequence that is not finished.
            params: how the second one samples; default as the first, which with a seed would choose the same tokens.
        """
        params = params or sequence.params
        twin = Sequence(
            token_ids=list(sequence.token_ids),
            num_prompt_tokens=sequence.num_prompt_tokens,
            params=params,
            stop_ids=sequence.stop_ids,
            random=np.random.default_rng(params.seed),
            max_new_tokens=min(params.max_tokens, self.max_context - sequence.num_prompt_tokens),
            num_computed=sequence.num_computed,
            num_cached=sequence.num_cached,
            block_table=self.block_manager.fork(sequence.block_table),
            logprobs=list(sequence.logprobs),
        )
        self.sequences.append(twin)
        return twin

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence between two steps and give back its pages; no-op when it is finished."""
        if not sequence.is_finished:
            self._finish(sequence, "cancelled")

    def logits(self, token_ids: Collection[int]) -> NDArray[np.float32]:
        """Return the logits after each token of a text, float32 [num_tokens, vocab_size of the model].

        Raises:
            PromptError, CapacityError: as `add`; the whole context may be used. CapacityError also when the result
                itself does not fit in memory: 1 MB a token in CodeGemma.
        """
        prompt = [int(token_id) for token_id in token_ids]
        self._check_prompt(prompt, needed=0)
        result = self._room_for_logits(len(prompt))
        rows = max(1, min(self.config.prefill_chunk, LOGITS_CHUNK_BYTES // (4 * result.shape[1])))
        table: list[int] = []
        try:
            self.block_manager.extend(table, len(prompt))
            pages = np.array(table, np.int32)
            for first in range(0, len(prompt), rows):
                chunk = np.array(prompt[first : first + rows], np.int32)
                span = SequenceSpan(0, len(chunk), first, pages)
                result[first : first + rows] = self.model.forward(chunk, [span], self.cache, np.arange(len(chunk)))
        finally:
            self.block_manager.release(table)
        return result

    def _room_for_logits(self, num_tokens: int) -> NDArray[np.float32]:
        vocab_size = self.model.config.vocab_size
        needed, available = 4 * num_tokens * vocab_size, available_bytes()
        if available is not None and needed > available:
            raise CapacityError(
                f"the logits of {num_tokens} tokens take {readable_size(needed)}, {readable_size(available)} are free; "
                "ask for fewer tokens at a time"
            )
        return np.empty((num_tokens, vocab_size), np.float32)

    def _check_prompt(self, prompt: list[int], needed: int = 1) -> None:
        if not prompt:
            raise PromptError("the prompt has no token; it needs at least <bos>")
        wrong = [token_id for token_id in prompt if not 0 <= token_id < self.model.config.vocab_size]
        if wrong:
            raise PromptError(f"token id {wrong[0]} is outside 0..{self.model.config.vocab_size - 1}")
        if len(prompt) + needed > self.max_context:
            raise CapacityError(
                f"the prompt has {len(prompt)} tokens, the context holds {self.max_context} with the answer; "
                "shorten the prompt or load with a larger max_context"
            )

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Choose how many tokens of each sequence to compute, and give them their pages."""
        budget = self.config.prefill_chunk
        scheduled: list[tuple[Sequence, int]] = []
        refused: CapacityError | None = None
        for sequence in self.sequences:
            pending = len(sequence.token_ids) - sequence.num_computed
            count = pending if pending == 1 else min(pending, budget)
            if count == 0:
                continue
            try:
                self._prepare_pages(sequence, count)
            except CapacityError as error:
                # It waits for the pages of sequences that finish before it.
                refused = error
                continue
            budget -= count if pending > 1 else 0
            scheduled.append((sequence, count))
        if refused is not None and not scheduled:
            raise refused
        return scheduled

    def _prepare_pages(self, sequence: Sequence, count: int) -> None:
        first, end = sequence.num_computed, sequence.num_computed + count
        page_size = self.config.page_size
        if first % page_size and first // page_size < len(sequence.block_table):
            # The page that the last step left half full may be shared with a fork.
            copy = self.block_manager.make_writable(sequence.block_table, first)
            if copy is not None:
                self.cache.copy_page(copy.source, copy.destination)
        self.block_manager.extend(sequence.block_table, end)

    def _advance(self, sequence: Sequence, count: int) -> None:
        before = sequence.num_computed
        sequence.num_computed += count
        if sequence.num_computed // self.config.page_size > before // self.config.page_size:
            self.block_manager.register_full_pages(sequence.block_table, sequence.token_ids, sequence.num_computed)

    def _draw(self, sequence: Sequence, logits: NDArray[np.float32]) -> SampledToken:
        seen = sequence.token_ids if sequence.params.repetition_penalty != 1.0 else ()
        return sample(logits[: self.vocab_size], sequence.params, sequence.random, seen)

    def _append(self, sequence: Sequence, sampled: SampledToken) -> TokenOutput:
        """Add a chosen token to its sequence, or end the sequence by it."""
        sequence.logprobs.append(sampled.logprob)
        if sampled.token_id in sequence.stop_ids:
            sequence.stop_id = sampled.token_id
            self._finish(sequence, "stop_id")
        else:
            sequence.token_ids.append(sampled.token_id)
            num_new = len(sequence.token_ids) - sequence.num_prompt_tokens
            if num_new >= sequence.max_new_tokens:
                self._finish(sequence, "max_tokens" if num_new >= sequence.params.max_tokens else "context_full")
        return TokenOutput(sequence, sampled.token_id, sampled.logprob)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        sequence.stop_reason = reason
        self.block_manager.release(sequence.block_table)
        self.sequences.remove(sequence)


def check_context(asked: int | None, trained: int) -> int:
    """Return the context length to use: what was asked for, at most what the model was trained for.

    Raises:
        ConfigError: more was asked for.
    """
    if asked is not None and asked > trained:
        raise ConfigError(f"max_context is {asked}; the model was trained for {trained} tokens: ask for at most that")
    return asked or trained


def _set_threads(num_threads: int | None) -> None:
    """Set the kernels' threads; None: as many as the processors this process may use."""
    available = int(numba.config.NUMBA_NUM_THREADS)
    if num_threads is not None and num_threads > available:
        raise ConfigError(f"num_threads is {num_threads}; Numba has {available} threads here: ask for at most that")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else available
    numba.set_num_threads(num_threads or max(1, min(usable, available)))
