"""Batches of token ids through the compiled model: padding, the loop over steps, and the choice of tokens.

This file owns which tokens are computed next. It knows no text: who asks follows each sequence and says when it ends.
Invariant: shapes depend on the batch size and on rounded lengths alone, so that a file of requests compiles a handful
of programs; rows that fill up a batch are computed and never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from cg_local.config import SamplingParams
from cg_local.jax_backend.model import LENGTH_STEP, Cache, Choice, CompiledModel, padded_length
from cg_local.sampling import sample

Integers = NDArray[np.int32]

OnToken = Callable[[int, int, float], bool]
"""Takes the row, the token id chosen next and the natural logarithm of its probability; returns whether to go on."""


class Generator:
    """Runs batches on one model; the cache of a batch is the next one's, where their shapes are equal.

    Args:
        model: compiled.
        batch_size: rows of every batch; a multiple of the mesh's "data" axis.
    """

    def __init__(self, model: CompiledModel, batch_size: int) -> None:
        self._model, self.batch_size = model, batch_size
        self._cache: Cache | None = None

    def run(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], on_token: OnToken) -> None:
        """Continue prompts until each is ended by `on_token` or has its max_tokens.

        Args:
            prompts: up to `batch_size` lists of ids, each with at least one.
            params: of each prompt: all greedy without a repetition penalty, or all in any way.
            on_token: see OnToken; called for rows that go on.
        """
        model, is_greedy = self._model, all(_is_greedy(each) for each in params)
        token_ids, starts = left_padded(prompts, self.batch_size)
        length, max_tokens = token_ids.shape[1], max(each.max_tokens for each in params)
        # The last token is chosen and never computed.
        num_slots = length + -(-(max_tokens - 1) // LENGTH_STEP) * LENGTH_STEP
        chooser = _Chooser(prompts, params, model.network.vocab_size)
        cache, self._cache = self._empty_cache(num_slots), None
        found, cache = model.prefill(model.weights, cache, token_ids, starts, is_greedy=is_greedy)
        going = set(range(len(prompts)))
        for step in range(max_tokens):
            chosen, logprobs = chooser.choose(found, going)
            for row in sorted(going):
                goes_on = on_token(row, int(chosen[row]), float(logprobs[row]))
                if not goes_on or step + 1 >= params[row].max_tokens:
                    going.remove(row)
            if not going:
                break
            found, cache = model.decode(
                model.weights,
                cache,
                _padded(chosen, self.batch_size),
                starts,
                np.int32(length + step),
                is_greedy=is_greedy,
            )
        self._cache = cache

    def losses(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Return the cross entropy in nats of each token but the first, of up to `batch_size` sequences."""
        token_ids, starts = left_padded(sequences, self.batch_size)
        losses = np.asarray(self._model.losses(self._model.weights, token_ids, starts), np.float64)
        return [losses[row, starts[row] : -1] for row in range(len(sequences))]

    def _empty_cache(self, num_slots: int) -> Cache:
        """Return the last batch's cache, whose content is masked or overwritten, or a new one."""
        if self._cache is not None and self._cache.keys.shape[3] == num_slots:
            return self._cache
        self._cache = None  # frees it before the new one is made
        return self._model.new_cache(self.batch_size, num_slots)


class _Chooser:
    """Chooses the tokens of a batch: on the devices where all rows are greedy, else as the engine does."""

    def __init__(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], vocab_size: int) -> None:
        self._params, self._vocab_size = params, vocab_size
        self._randoms = [np.random.default_rng(each.seed) for each in params]
        self._token_ids = [list(prompt) for prompt in prompts]

    def choose(self, found: Choice | jax.Array, going: set[int]) -> tuple[Integers, NDArray[np.float32]]:
        if isinstance(found, Choice):
            return np.asarray(found.token_ids), np.asarray(found.logprobs)
        logits = np.asarray(found)
        chosen, logprobs = np.zeros(len(logits), np.int32), np.zeros(len(logits), np.float32)
        for row in sorted(going):
            params = self._params[row]
            seen = self._token_ids[row] if params.repetition_penalty != 1.0 else ()
            sampled = sample(logits[row, : self._vocab_size], params, self._randoms[row], seen)
            chosen[row], logprobs[row] = sampled.token_id, sampled.logprob
            self._token_ids[row].append(sampled.token_id)
        return chosen, logprobs


def left_padded(sequences: Sequence[Sequence[int]], num_rows: int) -> tuple[Integers, Integers]:
    """Arrange sequences so that all end in the last column.

    Args:
        sequences: ids, up to num_rows lists.
        num_rows: of the result; spare rows hold one token.

    Returns:
        int32 [num_rows, columns], 0 where there is no token; int32 [num_rows], the column of each first token.
    """
    columns = padded_length(max(map(len, sequences)))
    token_ids = np.zeros((num_rows, columns), np.int32)
    starts = np.full(num_rows, columns - 1, np.int32)
    for row, sequence in enumerate(sequences):
        starts[row] = columns - len(sequence)
        token_ids[row, starts[row] :] = sequence
    return token_ids, starts


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature == 0 and params.repetition_penalty == 1.0


def _padded(token_ids: Integers, num_rows: int) -> Integers:
    return np.pad(token_ids, (0, num_rows - len(token_ids)))
