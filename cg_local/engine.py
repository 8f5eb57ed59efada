"""Steps over sequences: chunked prefill, decode, fork and cancel, in token ids only.

This file owns which tokens are computed next and the life of a sequence. It knows no text. Invariant: after every step
(and after every error) the pages in use are exactly those of the block tables of the sequences that are not finished.

The engine belongs to one thread: Numba's thread pools do not bear two callers at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import numba
import numpy as np
from numpy.typing import NDArray

from cg_local.block_manager import BlockManager
from cg_local.config import EngineConfig, SamplingParams
from cg_local.errors import CapacityError, ConfigError, PromptError
from cg_local.interrupts import interrupts_held
from cg_local.kernels.attention import PARTITION
from cg_local.kv_cache import KVCache
from cg_local.memory import available_bytes, readable_size
from cg_local.model import Model, SequenceSpan
from cg_local.sampling import SampledToken, sample
from cg_local.sequence import ScheduledSpan, Sequence, TokenOutput
from cg_local.speculation import SpeculationCounts, StepCosts, best_draft_length
from cg_local.threads import DecodeThreads, kernel_threads

# `Engine.logits` computes so much of its result at a time.
LOGITS_CHUNK_BYTES = 1 << 26


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
        num_threads = kernel_threads(self.config.num_threads, available=int(numba.config.NUMBA_NUM_THREADS))
        numba.set_num_threads(num_threads)  # starts Numba's pool, so that the first step does not have to
        self._threads = DecodeThreads(num_threads, is_fixed=self.config.num_threads is not None)
        num_pages = self.config.num_pages or -(-self.max_context // page_size)
        dtype = self.config.kv_dtype_for(model.folder.scheme)
        self.cache = KVCache(model.config, num_pages=num_pages, page_size=page_size, dtype=dtype)
        self.block_manager = BlockManager(num_pages, page_size)
        self.sequences: list[Sequence] = []
        self.speculation = SpeculationCounts()
        self._costs = StepCosts()

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
        with interrupts_held():
            sequence.block_table = self.block_manager.match_prefix(prompt)
            sequence.num_computed = sequence.num_cached = len(sequence.block_table) * self.config.page_size
            self.sequences.append(sequence)
        return sequence

    def step(self) -> list[TokenOutput]:
        """Compute the next tokens of all sequences: a decode token and its draft each, and up to one chunk of prompts.

        A draft's tokens are computed beside the token they follow. From each row the next token is drawn as without a
        draft; while it is the guess, the next row is that of the sequence so drawn. So every token is drawn from the
        same distribution and with the same random number as one step after the other: greedy and sampled answers do
        not depend on drafts. It is the rejection sampling of Leviathan et al., arXiv 2211.17192, for a draft that is
        sure of itself: the guess is accepted with the model's probability of it.

        Returns:
            The tokens chosen, those of a sequence in their order; empty after a chunk that did not finish a prompt.

        Raises:
            CapacityError: no sequence can go on because too few pages are free. Cancel one and step again.
        """
        started = time.perf_counter()
        with interrupts_held():
            scheduled = self._schedule()
        if not scheduled:
            return []
        # An interrupt in here leaves the step to be repeated; one that comes later finds it complete.
        logits = self._forward(scheduled)
        with interrupts_held():
            drawn = self._draw_all(scheduled, logits)
            is_decode = all(span.num_logits == 1 + len(span.draft) and span.count == 1 for span in scheduled)
            if is_decode and not self._threads.is_trial:
                self._costs.observe(len(logits), time.perf_counter() - started)
            committed = [self._commit(span, tokens) for span, tokens in zip(scheduled, drawn, strict=True)]
        return [output for outputs in committed for output in outputs]

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
            logprobs=list(sequence.logprobs),
        )
        with interrupts_held():
            twin.block_table = self.block_manager.fork(sequence.block_table)
            self.sequences.append(twin)
        return twin

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence between two steps and give back its pages; no-op when it is finished."""
        with interrupts_held():
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
                chunk = prompt[first : first + rows]
                span = SequenceSpan(0, len(chunk), first, pages)
                result[first : first + rows] = self._run_model(chunk, [span], range(len(chunk)))
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

    def _schedule(self) -> list[ScheduledSpan]:
        """Choose how many tokens of each sequence to compute, and give them their pages."""
        budget = self.config.prefill_chunk
        counts: list[tuple[Sequence, int]] = []
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
            counts.append((sequence, count))
        if refused is not None and not counts:
            raise refused
        drafts = self._drafts([sequence for sequence, _ in counts], is_decode=budget == self.config.prefill_chunk)
        return [ScheduledSpan(sequence, count, draft) for (sequence, count), draft in zip(counts, drafts, strict=True)]

    def _drafts(self, sequences: list[Sequence], is_decode: bool) -> list[list[int]]:
        """Guess next tokens as far as it pays, and give them pages that no sequence needs in this step.

        Args:
            sequences: those of the step.
            is_decode: the step computes no prompt; beside a prompt a few more tokens cost next to nothing.
        """
        # Shared by the sequences, so that a step has no more rows of logits than `memory_need` counts.
        num_decoding = sum(len(sequence.token_ids) > sequence.num_prompt_tokens for sequence in sequences)
        limit = self.config.max_draft_tokens // max(1, num_decoding)
        if limit == 0:
            return [[] for _ in sequences]
        drafts = [self._guess(sequence, limit) for sequence in sequences]
        if is_decode and any(drafts):
            expected = [s.lookup.expected_tokens() if d else [1.0] for s, d in zip(sequences, drafts, strict=True)]
            limit = best_draft_length(expected, self._costs)
        return [self._fit(sequence, draft[:limit]) for sequence, draft in zip(sequences, drafts, strict=True)]

    @staticmethod
    def _guess(sequence: Sequence, limit: int) -> list[int]:
        """Return what `lookup` proposes for a sequence that decodes, so far as the answer may go on."""
        num_new = len(sequence.token_ids) - sequence.num_prompt_tokens
        if num_new == 0:
            return []
        # The last token of an answer is chosen but never computed.
        guesses = sequence.lookup.propose(sequence.token_ids, min(limit, sequence.max_new_tokens - num_new - 1))
        ends = [place for place, token_id in enumerate(guesses) if token_id in sequence.stop_ids]
        return guesses[: ends[0]] if ends else guesses

    def _fit(self, sequence: Sequence, draft: list[int]) -> list[int]:
        """Return as much of a draft as there are pages for, prepared to be written."""
        while draft:
            try:
                self._prepare_pages(sequence, 1 + len(draft))
                break
            except CapacityError:
                draft = draft[: len(draft) // 2]
        return draft

    def _prepare_pages(self, sequence: Sequence, count: int) -> None:
        """Take pages for the next `count` tokens, and make those that are there the sequence's own."""
        first, end = sequence.num_computed, sequence.num_computed + count
        page_size, table = self.config.page_size, sequence.block_table
        # The page that the last step left half full, and those that an interrupted step took, may be shared with a
        # fork.
        for entry in range(first // page_size, min(-(-end // page_size), len(table))):
            copy = self.block_manager.make_writable(table, entry * page_size)
            if copy is not None:
                self.cache.copy_page(copy.source, copy.destination)
        self.block_manager.extend(table, end)

    def _forward(self, scheduled: list[ScheduledSpan]) -> NDArray[np.float32]:
        """Compute the spans; return the logits of their last tokens and drafts, one sequence after the other."""
        spans: list[SequenceSpan] = []
        token_ids: list[int] = []
        rows: list[int] = []
        for span in scheduled:
            sequence, first = span.sequence, span.sequence.num_computed
            start, count = len(token_ids), span.count + len(span.draft)
            spans.append(SequenceSpan(start, count, first, np.array(sequence.block_table, np.int32)))
            token_ids += sequence.token_ids[first : first + span.count] + span.draft
            rows += range(start + count - span.num_logits, start + count)
        return self._run_model(token_ids, spans, rows)

    def _run_model(self, token_ids: list[int], spans: list[SequenceSpan], rows: Collection[int]) -> NDArray[np.float32]:
        """Run the model on as many threads as suit the step."""
        num_threads = self._threads.begin(len(token_ids), is_decode=len(rows) == len(token_ids))
        # Numba keeps the number for each calling thread, and other engines of the process set their own.
        numba.set_num_threads(num_threads)
        logits = self.model.forward(np.array(token_ids, np.int32), spans, self.cache, np.array(rows, np.int64))
        self._threads.end()
        return logits

    def _draw_all(self, scheduled: list[ScheduledSpan], logits: NDArray[np.float32]) -> list[list[SampledToken]]:
        """Draw each sequence's next tokens; after an error the random numbers are as if none was drawn."""
        states = [(span.sequence.random.bit_generator, span.sequence.random.bit_generator.state) for span in scheduled]
        drawn, start = [], 0
        try:
            for span in scheduled:
                drawn.append(self._draw(span, logits[start : start + span.num_logits]))
                start += span.num_logits
        except BaseException:
            for bit_generator, state in states:
                bit_generator.state = state
            raise
        return drawn

    def _draw(self, span: ScheduledSpan, logits: NDArray[np.float32]) -> list[SampledToken]:
        """Draw a token from each row as long as it is the guess whose row is next."""
        sequence, drawn = span.sequence, list[SampledToken]()
        is_penalized = sequence.params.repetition_penalty != 1.0
        for place, row in enumerate(logits):
            seen = sequence.token_ids + span.draft[:place] if is_penalized else ()
            sampled = sample(row[: self.vocab_size], sequence.params, sequence.random, seen)
            drawn.append(sampled)
            if span.draft[place : place + 1] != [sampled.token_id]:
                break
        return drawn

    def _commit(self, span: ScheduledSpan, drawn: list[SampledToken]) -> list[TokenOutput]:
        """Take what was computed and drawn into the sequence; all tokens drawn but the last were in the draft."""
        sequence, accepted = span.sequence, drawn[:-1]
        sequence.token_ids += [sampled.token_id for sampled in accepted]
        sequence.logprobs += [sampled.logprob for sampled in accepted]
        self._advance(sequence, span.count + len(accepted))
        sequence.lookup.learn([sampled.token_id for sampled in drawn])
        for counts in (sequence.speculation, self.speculation):
            counts.add(len(span.draft), len(accepted), is_decode=sequence.num_prompt_tokens < sequence.num_computed)
        outputs = [TokenOutput(sequence, sampled.token_id, sampled.logprob) for sampled in accepted]
        return outputs + [self._append(sequence, sampled) for sampled in drawn[-1:]]

    def _advance(self, sequence: Sequence, count: int) -> None:
        before = sequence.num_computed
        sequence.num_computed += count
        # Pages that only rejected guesses needed are free again.
        self.block_manager.truncate(sequence.block_table, sequence.num_computed)
        if sequence.num_computed // self.config.page_size > before // self.config.page_size:
            self.block_manager.register_full_pages(sequence.block_table, sequence.token_ids, sequence.num_computed)

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
