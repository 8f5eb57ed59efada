"""Final hidden states of many sequences, layer by layer: each tensor is read and dequantized once for all of them.

Owns the order of the computation; the arithmetic is `reference`'s. Invariant: the states of a sequence are those that
`reference.residual_stream` gives for it alone, bit by bit, and at most one layer's feed-forward matrices are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.model_folder import EMBEDDING, HEAD
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
) -> list[Floats]:
    """Return the normed residual stream behind the last layer, which the head is multiplied with.

    Args:
        source: the weights, as published or dequantized.
        sequences: token ids, each from its BOS on; they do not see each other.
        observe: called once for each matrix of the layers, in order, with its inputs of every sequence, float32
            [num_tokens, inputs] each. All inputs of one half of a layer are held at once then.
        on_layer: called with the number of layers done and in all.

    Returns:
        float32 [num_tokens, hidden_size] for each sequence.
    """
    states = embedded(source, sequences)
    advance(source, states, range(source.config.num_layers), observe=observe, on_layer=on_layer)
    return normed(source, states)


def advance(
    source: RowSource,
    states: list[Floats],
    layers: Iterable[int],
    *,
    observe: Observe | None = None,
    on_layer: OnLayer | None = None,
) -> None:
    """Bring the residual stream behind some layers, in place.

    Args:
        source: the weights.
        states: the stream before the first of them, float32 [num_tokens, hidden_size] for each sequence.
        layers: numbers of layers that follow each other.
        observe, on_layer: as for `final_states`.
    """
    config = source.config
    cos, sin = rotary_table(np.arange(max(map(len, states), default=0)), config.head_dim, config.rope_theta)
    for layer in layers:
        held = _held(source, observe)
        for index, x in enumerate(states):
            states[index] = x + attention_branch(held, layer, x, cos[: len(x)], sin[: len(x)])
        held.tell()
        held = _held(source, observe)
        for index, x in enumerate(states):
            states[index] = x + feed_forward_branch(held, layer, x)
        held.tell()
        if on_layer is not None:
            on_layer(layer + 1, config.num_layers)


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

    @property
    def config(self) -> ModelConfig:
        return self._source.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self._source.tensor_names

    def tensor(self, name: str) -> Floats:
        if name not in self._tensors:
            self._tensors[name] = self._source.tensor(name)
        return self._tensors[name]

    def tell(self) -> None:
        """Hand over what was observed: nothing."""


class _Observed(_Held):
    """Also keeps the inputs of every matrix."""

    def __init__(self, source: TensorSource, observe: Observe) -> None:
        super().__init__(source)
        self._observe = observe
        self._inputs: dict[str, list[Floats]] = {}

    def observe(self, name: str, x: Floats) -> None:
        self._inputs.setdefault(name, []).append(x)

    def tell(self) -> None:
        for name, inputs in self._inputs.items():
            self._observe(name, inputs)


def _held(source: TensorSource, observe: Observe | None) -> _Held:
    return _Held(source) if observe is None else _Observed(source, observe)


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
