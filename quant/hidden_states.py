"""Final hidden states of many sequences, layer by layer: each tensor is read and dequantized once for all of them.

Owns the order of the computation; the arithmetic is `reference`'s. Invariant: the states of a sequence are those that
`reference.residual_stream` gives for it alone, bit by bit, and at most one layer's feed-forward matrices are held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.model_folder import EMBEDDING, HEAD
from cg_local.quant.fixed_order import in_order, threads_within
from cg_local.reference import (
    TensorSource,
    attention_branch,
    embed,
    feed_forward_branch,
    rms_norm,
    rotary_table,
)

Floats = NDArray[np.float32]
Observe = Callable[[str, list[Floats]], None]
OnLayer = Callable[[int, int], None]
Branch = Callable[[TensorSource, Floats], Floats]

SLAB_BYTES = 32 << 20
"""Of float32 rows of the embedding that are held at a time: 1 MiB to 2 GiB in all."""

FINAL_NORM = "model.norm.weight"


class RowSource(TensorSource, Protocol):
    """A source of tensors that also gives some rows of a matrix: a `Checkpoint` or a `DequantizedFolder`."""

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop of a matrix, float32 [stop - start, columns]."""


def final_states(
    source: RowSource,
    sequences: Sequence[Sequence[int]],
    *,
    observe: Observe | None = None,
    on_layer: OnLayer | None = None,
    num_threads: int = 1,
) -> list[Floats]:
    """Return the normed residual stream behind the last layer, which the head is multiplied with.

    Args:
        source: the weights, as published or dequantized.
        sequences: token ids, each from its BOS on; they do not see each other.
        observe: called once for each matrix of the layers, in order, with its inputs of every sequence, float32
            [num_tokens, inputs] each. All inputs of one half of a layer are held at once then.
        on_layer: called with the number of layers done and in all.
        num_threads: among which the sequences are shared out.

    Returns:
        float32 [num_tokens, hidden_size] for each sequence.
    """
    states = embedded(source, sequences)
    layers = range(source.config.num_layers)
    advance(source, states, layers, observe=observe, on_layer=on_layer, num_threads=num_threads)
    return normed(source, states)


def advance(
    source: RowSource,
    states: list[Floats],
    layers: Iterable[int],
    *,
    observe: Observe | None = None,
    on_layer: OnLayer | None = None,
    num_threads: int = 1,
) -> None:
    """Bring the residual stream behind some layers, in place.

    Args:
        source: the weights.
        states: the stream before the first of them, float32 [num_tokens, hidden_size] for each sequence.
        layers: numbers of layers that follow each other.
        observe, on_layer, num_threads: as for `final_states`.
    """
    config = source.config
    longest = max(map(len, states), default=0)
    num_threads = threads_within(num_threads, window_bytes(config, longest))
    cos, sin = rotary_table(np.arange(longest), config.head_dim, config.rope_theta)
    for layer in layers:

        def attended(seen: TensorSource, x: Floats, layer: int = layer) -> Floats:
            return attention_branch(seen, layer, x, cos[: len(x)], sin[: len(x)])

        def fed_forward(seen: TensorSource, x: Floats, layer: int = layer) -> Floats:
            return feed_forward_branch(seen, layer, x)

        for branch in (attended, fed_forward):
            _pass_half(source, states, branch, observe, num_threads)
        if on_layer is not None:
            on_layer(layer + 1, config.num_layers)


def _pass_half(
    source: RowSource, states: list[Floats], branch: Branch, observe: Observe | None, num_threads: int
) -> None:
    """Bring the residual stream behind one half of a layer, in place."""
    held = _Held(source)

    def moved(number: int) -> tuple[Floats, dict[str, Floats]]:
        x, seen = states[number], _Observed(held)
        return x + branch(held if observe is None else seen, x), seen.inputs

    inputs: dict[str, list[Floats]] = {}
    for number, (state, found) in enumerate(in_order(moved, range(len(states)), num_threads)):
        states[number] = state
        for name, x in found.items():
            inputs.setdefault(name, []).append(x)
    if observe is not None:
        for name, every in inputs.items():
            observe(name, every)


def window_bytes(config: ModelConfig, num_tokens: int) -> int:
    """Return what one sequence's own arrays take while it passes half of a layer: gate, up and what is made of them."""
    return 4 * num_tokens * 4 * config.intermediate_size


def normed(source: RowSource, states: Sequence[Floats]) -> list[Floats]:
    """Return the stream behind the last layer as the head sees it."""
    gain = source.tensor(FINAL_NORM)
    return [rms_norm(x, gain, source.config.rms_norm_eps) for x in states]


def head_name(source: TensorSource) -> str:
    """Return the name of the matrix that makes logits: the embedding, unless a separate head is stored."""
    return HEAD if HEAD in source.tensor_names else EMBEDDING


def slab_rows(columns: int) -> int:
    """Return how many rows of a matrix are held at a time."""
    return max(1, SLAB_BYTES // (4 * columns))


class _Held:
    """Keeps the tensors of one half of a layer while all sequences pass through it."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._tensors: dict[str, Floats] = {}
        self._reading = threading.Lock()  # so that threads that want a tensor at once read it once

    @property
    def config(self) -> ModelConfig:
        return self._source.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self._source.tensor_names

    def tensor(self, name: str) -> Floats:
        with self._reading:
            if name not in self._tensors:
                self._tensors[name] = self._source.tensor(name)
            return self._tensors[name]


class _Observed:
    """The same tensors for one sequence, with the inputs of every matrix."""

    def __init__(self, held: _Held) -> None:
        self._held = held
        self.inputs: dict[str, Floats] = {}

    @property
    def config(self) -> ModelConfig:
        return self._held.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self._held.tensor_names

    def tensor(self, name: str) -> Floats:
        return self._held.tensor(name)

    def observe(self, name: str, x: Floats) -> None:
        self.inputs[name] = x


def embedded(source: RowSource, sequences: Sequence[Sequence[int]]) -> list[Floats]:
    """Return the residual stream before the first layer, float32 [num_tokens, hidden_size] for each sequence.

    The rows that occur are looked up slab by slab: a whole float32 embedding of 2B takes 2 GiB.
    """
    flat = np.concatenate([np.asarray(ids, np.int64) for ids in sequences]) if sequences else np.zeros(0, np.int64)
    wanted, places = np.unique(flat, return_inverse=True)
    width, step = source.config.hidden_size, slab_rows(source.config.hidden_size)
    table = np.empty((len(wanted), width), np.float32)
    for start in range(0, source.config.vocab_size, step):
        stop = min(start + step, source.config.vocab_size)
        low, high = np.searchsorted(wanted, (start, stop))
        if low < high:
            table[low:high] = source.rows(EMBEDDING, start, stop)[wanted[low:high] - start]
    borders = np.cumsum([len(ids) for ids in sequences])[:-1]
    return [embed(table, ids, "exact") for ids in np.split(places.reshape(-1), borders)] if sequences else []
