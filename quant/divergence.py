"""How far one model's next-token distributions are from another's, token by token.

Owns the figures of a token and their computation over slabs of the vocabulary. It knows no corpus and no model.
Invariant: only one slab of logits of a bounded number of tokens is held, and a model against itself gives exactly 0.

With logits z of the reference and y of the model, P = softmax(z), Q = softmax(y):

    KL(P || Q) = sum_v P_v (z_v - y_v) - lse(z) + lse(y)

The sums run in float64 under a running maximum; natural logarithms. Source: definitions; llama.cpp, tools/perplexity
(its figures of the same names; it leaves out terms of P below exp(-16), which are kept here).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local.quant.fixed_order import in_order, threads_within
from cg_local.quant.hidden_states import RowSource, head_name, slab_rows

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK_BYTES = 32 << 20
"""Of one float64 slab of logits; about five of them exist at a time in each thread."""


@dataclass(frozen=True)
class TokenFigures:
    """Figures of each scored token, float64 [num_tokens] unless said otherwise.

    Attributes:
        kl: KL(reference || model) in nats.
        is_same_top: bool; both models find the same token most probable.
        reference_loss: -ln of the reference's probability of the true token.
        model_loss: of the model's.
    """

    kl: Doubles
    is_same_top: NDArray[np.bool_]
    reference_loss: Doubles
    model_loss: Doubles

    @property
    def probability_difference(self) -> Doubles:
        """The model's probability of the true token less the reference's."""
        return np.exp(-self.model_loss) - np.exp(-self.reference_loss)

    @classmethod
    def join(cls, parts: list[TokenFigures]) -> TokenFigures:
        """Return the figures of several runs of tokens as one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class LogitSlabs(Protocol):
    """Logits of some tokens, a slab of the vocabulary at a time.

    Attributes:
        num_tokens: rows.
        vocab_size: columns.
        slab: columns that it gives at a time with little work.
    """

    num_tokens: int
    vocab_size: int
    slab: int

    def columns(self, start: int, stop: int) -> ColumnSlab:
        """Prepare the columns start..stop."""


class ColumnSlab(Protocol):
    """A slab of the vocabulary."""

    def rows(self, first: int, last: int) -> Floats:
        """Return the logits of tokens first..last, float32 [last - first, columns of the slab]."""


class HeadLogits:
    """Logits as the product of final states and the head's rows, each of which is read once.

    Args:
        states: float32 [num_tokens, hidden_size], normed.
        source: has the head.
        vocab_size: rows of the head that count; the others are padding.
    """

    def __init__(self, states: Floats, source: RowSource, vocab_size: int) -> None:
        self._states, self._source, self._name = states, source, head_name(source)
        self.num_tokens, self.vocab_size = len(states), vocab_size
        self.slab = slab_rows(states.shape[1])

    def columns(self, start: int, stop: int) -> ColumnSlab:
        """Read rows start..stop of the head."""
        return _HeadSlab(self._states, self._source.rows(self._name, start, stop))


@dataclass(frozen=True)
class _HeadSlab:
    states: Floats
    head: Floats

    def rows(self, first: int, last: int) -> Floats:
        product: Floats = self.states[first:last] @ self.head.T
        return product


class RowLogits:
    """Logits that an engine has computed.

    Args:
        logits: float32 [num_tokens, vocab_size or more].
        vocab_size: columns that count.
    """

    def __init__(self, logits: Floats, vocab_size: int) -> None:
        self._logits = logits
        self.num_tokens, self.vocab_size, self.slab = len(logits), vocab_size, vocab_size

    def columns(self, start: int, stop: int) -> ColumnSlab:
        """Take the columns start..stop."""
        return _RowSlab(self._logits[:, start:stop])


@dataclass(frozen=True)
class _RowSlab:
    logits: Floats

    def rows(self, first: int, last: int) -> Floats:
        return self.logits[first:last]


def compare(reference: LogitSlabs, model: LogitSlabs, true_ids: Integers, num_threads: int = 1) -> TokenFigures:
    """Compare the distributions of the next token at each place.

    Args:
        reference: of num_tokens places.
        model: of the same places and vocabulary.
        true_ids: int64 [num_tokens], the token that follows each place.
        num_threads: among which the places are shared out.
    """
    if not (reference.num_tokens == model.num_tokens == len(true_ids) and reference.vocab_size == model.vocab_size):
        raise ValueError("the places or the vocabularies differ")
    sums = _Sums.empty(len(true_ids))
    step = min(reference.slab, model.slab, reference.vocab_size)
    for start in range(0, reference.vocab_size, step):
        stop = min(start + step, reference.vocab_size)
        z_slab, y_slab = reference.columns(start, stop), model.columns(start, stop)
        add = partial(_add_block, sums, start, z_slab, y_slab, true_ids)
        for _ in in_order(add, _blocks(len(true_ids), stop - start), threads_within(num_threads, 5 * BLOCK_BYTES)):
            pass  # each place has sums of its own
    return sums.figures()


def _add_block(
    sums: _Sums, start: int, z_slab: ColumnSlab, y_slab: ColumnSlab, true_ids: Integers, block: tuple[int, int]
) -> None:
    """Take the logits of some tokens in one slab of the vocabulary, which begins at `start`."""
    first, last = block
    z, y = z_slab.rows(first, last), y_slab.rows(first, last)
    sums.add(slice(first, last), start, z.astype(np.float64), y.astype(np.float64), true_ids[first:last])


def _blocks(num_tokens: int, num_columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // (8 * num_columns))
    for first in range(0, num_tokens, step):
        yield first, min(first + step, num_tokens)


@dataclass(frozen=True)
class _Running:
    """One model's running maximum, sum of exponentials below it, most probable token and true token's logit."""

    peak: Doubles
    total: Doubles
    top: Integers
    true: Doubles

    @classmethod
    def empty(cls, size: int) -> _Running:
        return cls(np.full(size, -np.inf), np.zeros(size), np.zeros(size, np.int64), np.zeros(size))

    def add(self, rows: slice, start: int, logits: Doubles, true_ids: Integers) -> tuple[Doubles, Doubles]:
        """Take a slab's logits; returns its exponentials and by how much the earlier sums shrink."""
        place = logits.argmax(axis=1)
        highest = np.take_along_axis(logits, place[:, None], 1)[:, 0]
        before = self.peak[rows]
        self.top[rows] = np.where(highest > before, start + place, self.top[rows])
        peak = np.maximum(before, highest)
        shrink = np.exp(before - peak)
        exponentials = np.exp(logits - peak[:, None])
        self.peak[rows] = peak
        self.total[rows] = self.total[rows] * shrink + exponentials.sum(axis=1)
        inside = (true_ids >= start) & (true_ids < start + logits.shape[1])
        self.true[rows][inside] = logits[inside, true_ids[inside] - start]
        return exponentials, shrink

    def log_sum(self) -> Doubles:
        return self.peak + np.log(self.total)


@dataclass(frozen=True)
class _Sums:
    reference: _Running
    model: _Running
    weighted: Doubles  # sum of exp(z - peak) * (z - y)

    @classmethod
    def empty(cls, size: int) -> _Sums:
        return cls(_Running.empty(size), _Running.empty(size), np.zeros(size))

    def add(self, rows: slice, start: int, z: Doubles, y: Doubles, true_ids: Integers) -> None:
        exponentials, shrink = self.reference.add(rows, start, z, true_ids)
        self.model.add(rows, start, y, true_ids)
        self.weighted[rows] = self.weighted[rows] * shrink + np.einsum("ij,ij->i", exponentials, z - y)

    def figures(self) -> TokenFigures:
        z_log_sum, y_log_sum = self.reference.log_sum(), self.model.log_sum()
        return TokenFigures(
            kl=self.weighted / self.reference.total - z_log_sum + y_log_sum,
            is_same_top=self.reference.top == self.model.top,
            reference_loss=z_log_sum - self.reference.true,
            model_loss=y_log_sum - self.model.true,
        )
