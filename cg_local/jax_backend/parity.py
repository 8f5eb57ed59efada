"""JAX beside another path: how far apart they are after each layer and at the end, and how far they may be.

This file owns the comparison, its figures and its tolerances. It owns no arithmetic of a network. Invariant: both sides
compute the same token ids with the same weights; a figure is compared with a tolerance that says where it comes from.

After each layer the rows of the residual stream are compared scaled to unit root mean square, as the next norm sees
them, and through the output head ("what would the model say if it ended here"), which gives KL and top-1 a meaning
there. The head of these comparisons is float32 NumPy on both sides, so a layer's figures hold the layers' part alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local import reference
from cg_local.jax_backend.generate import left_padded
from cg_local.jax_backend.model import CompiledModel
from cg_local.jax_backend.weights import FINAL_NORM, WeightSource
from cg_local.model_folder import EMBEDDING, HEAD

Floats = NDArray[np.float32]

# Float32 sums in another order; the bound that the project promises.
FLOAT32_SHARE = 1e-4
# Relative deviation of values rounded to bfloat16 (8 bits): half a step, uniform: 2**-8 / sqrt(12).
BFLOAT16_ROUNDING = 2**-8 / math.sqrt(12)
# Relative deviation of activations rounded to int8: a step of the largest of 32 values / 127, uniform; the largest of
# 32 normal values is about 2.1 deviations: 2.1 / 127 / sqrt(12).
INT8_ROUNDING = 2.1 / 127 / math.sqrt(12)
# Rounded inputs that follow each other in a layer: of q, k, v, of o, of gate and up, of down; K and V (the cache).
ROUNDINGS_PER_LAYER = 6
# The largest of a million deviations is 5 of them and the logits' range about 10: a share of a half; times 4, because
# layers may multiply an error before they add their own.
SAFETY = 2.0
# Rows of logits whose distributions are computed at once, in float64: 64 MiB of CodeGemma's.
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Tolerance:
    """How large the largest difference may be, as a share of the expected values' range, and why.

    KL and top-1 need none of their own: logits that differ by d at most have a KL of d**2 / 2 at most, and another
    top-1 only where the first two are within 2 d.
    """

    share: float
    reason: str


@dataclass(frozen=True)
class Difference:
    """How far JAX is from the other side at one place; natural logarithms.

    Attributes:
        place: "embedding", "layer 1" (after it) ... or "logits".
        largest, mean: absolute differences.
        largest_share, mean_share: the same over the range of the other side's values.
        kl_mean, kl_max: Kullback-Leibler divergence of JAX's next-token distributions from the other side's, in nats.
        top1_agreement: share of positions with the same most probable token.
    """

    place: str
    largest: float
    mean: float
    largest_share: float
    mean_share: float
    kl_mean: float
    kl_max: float
    top1_agreement: float

    def document(self) -> dict[str, object]:
        """Return the members of a JSON document."""
        return asdict(self)


class OtherSide(Protocol):
    """What JAX is compared with."""

    def states(self) -> Iterator[Floats]:
        """Yield the residual stream, [num_tokens, hidden_size], after the embedding and after each layer.

        Rows may be scaled by any positive factor.
        """

    def logits(self) -> Floats:
        """Return float32 [num_tokens, vocab_size]; asked for after the states."""


class JaxSide:
    """A compiled model's states and logits of one sequence.

    Args:
        model: compiled; on a mesh, every group of devices computes the sequence.
        token_ids: the sequence.
    """

    def __init__(self, model: CompiledModel, token_ids: Sequence[int]) -> None:
        rows = model.network.shardings.data
        ids, starts = left_padded([token_ids] * rows, rows)
        self._first = int(starts[0])
        self._model, self._ids, self._starts = model, ids, starts
        self._states = np.asarray(model.states(model.weights, ids, starts))

    def states(self) -> Iterator[Floats]:
        """See `OtherSide`."""
        for state in self._states:
            yield state[0, self._first :]

    def logits(self) -> Floats:
        """See `OtherSide`."""
        found: Floats = np.asarray(self._model.logits(self._model.weights, self._states[-1]))
        return found[0, self._first :]


def tolerance(dtype: str, num_layers: int, *, rounds_activations: bool, rounds_cache: bool) -> Tolerance:
    """Return how far JAX may be from the other side.

    Args:
        dtype: that JAX computes in.
        num_layers: of the model.
        rounds_activations: the other side rounds the inputs of products to int8 (the engine beside 4- and 8-bit
            weights).
        rounds_cache: the other side keeps K and V in float16.
    """
    depth = math.sqrt(ROUNDINGS_PER_LAYER * num_layers + 1)
    roundings = f"{ROUNDINGS_PER_LAYER} roundings in each of {num_layers} layers and one before the head"
    share, reason = FLOAT32_SHARE, "float32 sums in another order"
    if dtype == "bfloat16":
        share = SAFETY * BFLOAT16_ROUNDING * depth
        reason = f"inputs of products in bfloat16 ({BFLOAT16_ROUNDING:.2%} each, {roundings})"
    if rounds_activations:
        share = math.hypot(share, SAFETY * INT8_ROUNDING * depth)
        reason += f"; the engine's in int8 ({INT8_ROUNDING:.2%} each, {roundings})"
    elif rounds_cache:
        # float16 has 11 bits, 3 more than bfloat16; K and V of each layer.
        share = math.hypot(share, SAFETY * BFLOAT16_ROUNDING / 8 * math.sqrt(2 * num_layers))
        reason += "; the engine's K and V in float16"
    return Tolerance(share, reason)


def compare(source: WeightSource, jax_side: JaxSide, other: OtherSide, *, layers: bool = True) -> Iterator[Difference]:
    """Yield the differences, layer by layer and at last the logits'.

    Args:
        source: the weights, for the final norm and the head.
        jax_side: JAX.
        other: what it is compared with.
        layers: also compare after each layer.
    """
    if layers:
        gain = 1 + source.tensor(FINAL_NORM)
        head = source.tensor(HEAD if HEAD in source.tensor_names else EMBEDDING)
        for number, (found, expected) in enumerate(zip(jax_side.states(), other.states(), strict=True)):
            place = f"layer {number}" if number else "embedding"
            found, expected = unit_rows(found), unit_rows(expected)
            yield measure(place, expected, found, (expected * gain) @ head.T, (found * gain) @ head.T)
        del head
    expected, found = other.logits(), jax_side.logits()
    yield measure("logits", expected, found, expected, found)


def measure(place: str, expected: Floats, found: Floats, expected_logits: Floats, found_logits: Floats) -> Difference:
    """Return the figures of one place.

    Args:
        place: its name.
        expected, found: the values there, of the other side and of JAX.
        expected_logits, found_logits: what they mean as logits, [num_tokens, vocab_size].
    """
    difference = np.abs(found - expected)
    value_range = float(expected.max() - expected.min())
    divergences = np.concatenate(
        [
            kl_divergences(expected_logits[start : start + ROWS_AT_ONCE], found_logits[start : start + ROWS_AT_ONCE])
            for start in range(0, len(expected_logits), ROWS_AT_ONCE)
        ]
    )
    # Equal maxima count as one: a row agrees where JAX's choice is one of the other side's most probable tokens.
    choices = expected_logits[np.arange(len(found_logits)), found_logits.argmax(axis=1)]
    return Difference(
        place=place,
        largest=float(difference.max()),
        mean=float(difference.mean()),
        largest_share=float(difference.max()) / value_range,
        mean_share=float(difference.mean()) / value_range,
        kl_mean=float(divergences.mean()),
        kl_max=float(divergences.max()),
        top1_agreement=float(np.mean(choices == expected_logits.max(axis=1))),
    )


def kl_divergences(expected: Floats, found: Floats) -> NDArray[np.float64]:
    """Return sum p (log p - log q) of each row, in nats; rounding may leave -1e-16, which counts as 0."""
    log_p, log_q = (_log_softmax(each.astype(np.float64)) for each in (expected, found))
    divergences: NDArray[np.float64] = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0)
    return divergences


def unit_rows(x: Floats) -> Floats:
    """Scale each row to unit root mean square."""
    scaled: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    return scaled


def is_within(difference: Difference, limit: Tolerance) -> bool:
    """Whether a difference is finite and within its tolerance."""
    return math.isfinite(difference.largest_share) and difference.largest_share <= limit.share


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result


class ReferenceSide:
    """`cg_local.reference` on the same weights.

    Args:
        source: the weights.
        token_ids: the sequence.
        embedding_scale: see `reference.logits`.
    """

    def __init__(
        self, source: WeightSource, token_ids: Sequence[int], embedding_scale: reference.EmbeddingScale = "exact"
    ) -> None:
        self._source = source
        self._stream = reference.residual_stream(source, token_ids, embedding_scale=embedding_scale)
        self._last: Floats | None = None

    def states(self) -> Iterator[Floats]:
        """See `OtherSide`."""
        for state in self._stream:
            self._last = state
            yield state

    def logits(self) -> Floats:
        """See `OtherSide`."""
        for state in self.states():
            self._last = state
        assert self._last is not None
        return reference.output_logits(self._source, self._last)
