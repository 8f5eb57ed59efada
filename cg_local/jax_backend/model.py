"""The forward pass over stacked layers, with a K/V cache of fixed shape.

This file owns prefill, decode and scoring of a batch, as functions of arrays that are compiled once for each shape. It
knows no text and no request. Invariant: a sequence's logits do not depend on the rest of its batch beyond the order of
float32 sums, because what is masked counts exactly 0.

Batches are padded on the left: all sequences end in the same column, so that one slot of the cache is written at each
step, whatever their lengths, and that slot is a number and not an index array. Sequence b starts in column starts[b];
position p of it lies in slot starts[b] + p.

Layers run under `lax.scan`, so a program holds one layer, whatever their number: 28 layers compile as fast as one, and
the collectives of a layer stand in the program once. The cache travels in the scan's carry, where XLA updates it in
place; as one of its outputs it would be copied once a step.

Source of the network: as in `layers`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cg_local.config import ModelConfig
from cg_local.errors import ConfigError
from cg_local.jax_backend.layers import decoder_layer, rms_norm, rotary_angles, rotate
from cg_local.jax_backend.mesh import DATA, TENSOR, Shardings
from cg_local.jax_backend.weights import DTYPES, Weights
from cg_local.reference import EmbeddingScale

MASKED = -1e30
# Queries of a prompt whose scores are held at once: 8192 tokens and 16 heads take 128 MiB of scores a sequence.
QUERY_BLOCK = 256
# Rows of logits that `losses` holds at once: 128 MiB in CodeGemma.
LOSS_ROWS = 128
# Lengths are rounded up to multiples of this, so that few shapes are compiled.
LENGTH_STEP = 64


class Cache(NamedTuple):
    """Keys (rotated) and values, [num_layers, B, num_kv_heads, num_slots, head_dim] each."""

    keys: jax.Array
    values: jax.Array


class Choice(NamedTuple):
    """The most probable next token of each sequence, and the natural logarithm of its probability."""

    token_ids: jax.Array
    logprobs: jax.Array


@dataclass(frozen=True)
class Network:
    """What the compiled functions need beside arrays.

    Attributes:
        config: of the model.
        dtype: of matrices, cache and the inputs of products, of `weights.DTYPES`; sums are float32.
        shardings: of all arrays.
        embedding_scale: see `reference.logits`.
        vocab_size: ids from here on are never chosen.
    """

    config: ModelConfig
    dtype: str
    shardings: Shardings
    embedding_scale: EmbeddingScale
    vocab_size: int

    def project(self, x: jax.Array, *weights: jax.Array) -> list[jax.Array]:
        """x @ each of the weights, in float32; each alone, because to join them would copy them."""
        x = x.astype(DTYPES[self.dtype])
        return [
            jnp.matmul(x, weight, precision=self.precision, preferred_element_type=jnp.float32) for weight in weights
        ]

    @property
    def precision(self) -> jax.lax.Precision:
        """How products are computed: a GPU or TPU would otherwise round float32 inputs to 10 bits, or 7."""
        return jax.lax.Precision.HIGHEST if self.dtype == "float32" else jax.lax.Precision.DEFAULT

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Say where an activation lies."""
        return jax.lax.with_sharding_constraint(x, self.shardings.place(*axes))


def embed(network: Network, weights: Weights, token_ids: jax.Array) -> jax.Array:
    """Look up token embeddings and scale them; float32 [B, T, hidden_size]."""
    scale = jnp.float32(math.sqrt(network.config.hidden_size))
    if network.embedding_scale == "bf16":
        scale = scale.astype(jnp.bfloat16).astype(jnp.float32)
    return network.constrain(weights.embedding[token_ids].astype(jnp.float32) * scale, DATA, None, None)


def attend(
    network: Network, q: jax.Array, keys: jax.Array, values: jax.Array, slots: jax.Array, starts: jax.Array
) -> jax.Array:
    """Mix values by the causal softmax of scaled query-key products.

    Args:
        network: type and shardings.
        q: float32 [B, T, num_heads, head_dim], rotated.
        keys, values: [B, num_kv_heads, num_slots, head_dim], keys rotated.
        slots: int32 [T], of the queries.
        starts: int32 [B], first slot of each sequence.

    Returns:
        float32 [B, T, num_heads * head_dim].
    """
    batch, length, num_heads, head_dim = q.shape
    # Query heads of one K/V head stand side by side; which of the two axes is shared out follows from the weights.
    grouped = q.reshape(batch, length, keys.shape[1], -1, head_dim).astype(keys.dtype)
    options: dict[str, Any] = {"precision": network.precision, "preferred_element_type": jnp.float32}
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys, **options) * (head_dim**-0.5)
    key_slots = jnp.arange(keys.shape[2])
    is_seen = (key_slots <= slots[:, None]) & (key_slots >= starts[:, None, None])  # [B, T, S]
    shares = jax.nn.softmax(jnp.where(is_seen[:, None, None], scores, MASKED), axis=-1)
    mixed = jnp.einsum("bkgts,bksd->btkgd", shares.astype(values.dtype), values, **options)
    return mixed.reshape(batch, length, num_heads * head_dim)


def attend_in_blocks(
    network: Network, q: jax.Array, keys: jax.Array, values: jax.Array, slots: jax.Array, starts: jax.Array
) -> jax.Array:
    """`attend`, QUERY_BLOCK queries at a time where there are more: the scores of all would not fit in memory."""
    batch, length, num_heads, head_dim = q.shape
    if length <= QUERY_BLOCK or length % QUERY_BLOCK:
        return attend(network, q, keys, values, slots, starts)
    blocks = q.reshape(batch, -1, QUERY_BLOCK, num_heads, head_dim).swapaxes(0, 1)
    mixed = jax.lax.map(
        lambda block: attend(network, block[0], keys, values, block[1], starts),
        (blocks, slots.reshape(-1, QUERY_BLOCK)),
    )
    return mixed.swapaxes(0, 1).reshape(batch, length, num_heads * head_dim)


def forward(
    network: Network,
    weights: Weights,
    cache: Cache,
    token_ids: jax.Array,
    starts: jax.Array,
    *,
    first_slot: jax.Array | int,
    num_keys: int,
    keep_states: bool = False,
) -> tuple[jax.Array, Cache, jax.Array | None]:
    """Run all layers over some columns of a batch, and write their K and V.

    Args:
        network: constants, type and shardings.
        weights: of the model.
        cache: with K and V of all columns before.
        token_ids: int32 [B, T]; anything left of a sequence's start.
        starts: int32 [B], the column in which each sequence starts.
        first_slot: of the first column.
        num_keys: slots that queries look at, from 0; first_slot + T at least.
        keep_states: also return the residual stream after each layer.

    Returns:
        The residual stream, float32 [B, T, hidden_size]; the cache; [num_layers, B, T, hidden_size] or None.
    """
    config = network.config
    slots = first_slot + jnp.arange(token_ids.shape[1])
    cos, sin = rotary_angles(config.head_dim, config.rope_theta, jnp.maximum(slots - starts[:, None], 0))

    def run_layer(carry: tuple[jax.Array, Cache], scanned: tuple[dict[str, jax.Array], jax.Array]) -> Any:
        (x, cache), (layer_weights, layer) = carry, scanned

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal cache
            q = network.constrain(rotate(q, cos, sin), DATA, None, TENSOR, None)
            cache = _write(cache, rotate(k, cos, sin), v, layer, first_slot)
            keys, values = (jax.lax.dynamic_index_in_dim(part, layer, 0, False)[:, :, :num_keys] for part in cache)
            return attend_in_blocks(network, q, keys, values, slots, starts)

        x = decoder_layer(x, layer_weights, config.head_dim, config.rms_norm_eps, attend=mix, project=network.project)
        x = network.constrain(x, DATA, None, None)
        return (x, cache), (x if keep_states else None)

    x = embed(network, weights, token_ids)
    (x, cache), states = jax.lax.scan(run_layer, (x, cache), (weights.layers, jnp.arange(config.num_layers)))
    return x, cache, states


def _write(cache: Cache, k: jax.Array, v: jax.Array, layer: jax.Array, first_slot: jax.Array | int) -> Cache:
    """Write K and V, float32 [B, T, num_kv_heads, head_dim], of one layer from a slot on."""
    at = (layer, 0, 0, first_slot, 0)
    parts = (
        jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2)[None].astype(old.dtype), at)
        for old, new in zip(cache, (k, v), strict=True)
    )
    return Cache(*parts)


def logits(network: Network, weights: Weights, x: jax.Array) -> jax.Array:
    """Norm and output head: float32 [..., hidden_size] of the residual stream to float32 [..., vocab_size]."""
    normed = rms_norm(x, weights.final_norm, network.config.rms_norm_eps).astype(DTYPES[network.dtype])
    head = weights.embedding if weights.head is None else weights.head
    return jnp.einsum("...h,vh->...v", normed, head, precision=network.precision, preferred_element_type=jnp.float32)


def choose(network: Network, scores: jax.Array) -> Choice:
    """Take the most probable token, the smallest id among equals; scores are float32 [B, vocab_size]."""
    usable = jnp.where(jnp.arange(scores.shape[1]) < network.vocab_size, scores, -jnp.inf)
    best = jnp.argmax(usable, axis=-1)
    peak = jnp.max(usable, axis=-1)
    return Choice(best.astype(jnp.int32), peak - jax.nn.logsumexp(scores, axis=-1))


class CompiledModel:
    """A model on its devices and its compiled functions.

    Args:
        network: constants, type and shardings.
        weights: on the devices of the shardings.
    """

    def __init__(self, network: Network, weights: Weights) -> None:
        self.network, self.weights = network, weights
        places = network.shardings
        whole, cache = places.replicated, Cache(places.cache, places.cache)
        # The cache is donated: each step writes into the memory of the step before.
        compiled = functools.partial(jax.jit, donate_argnums=1)
        self.prefill = compiled(
            functools.partial(_prefill, network), static_argnames=("is_greedy",), out_shardings=(whole, cache)
        )
        self.decode = compiled(
            functools.partial(_decode, network), static_argnames=("is_greedy",), out_shardings=(whole, cache)
        )
        self.losses = jax.jit(functools.partial(_losses, network), out_shardings=whole)
        self.states = jax.jit(functools.partial(_states, network), out_shardings=whole)
        self.logits = jax.jit(functools.partial(logits, network), out_shardings=whole)

    def new_cache(self, batch: int, num_slots: int) -> Cache:
        """Return an empty cache on the devices."""
        make = functools.partial(_empty_cache, self.network, batch, num_slots)
        place = self.network.shardings.cache
        cache: Cache = jax.jit(make, out_shardings=Cache(place, place))()
        return cache

    def cache_bytes(self, batch: int, num_slots: int) -> int:
        """Return the bytes of a cache on all devices together, replicas not counted."""
        config, itemsize = self.network.config, DTYPES[self.network.dtype].itemsize
        return int(itemsize) * 2 * config.num_layers * batch * config.num_kv_heads * num_slots * config.head_dim


def padded_length(length: int) -> int:
    """Return the number of columns of a batch whose longest sequence has `length` tokens."""
    step = LENGTH_STEP if length <= QUERY_BLOCK else QUERY_BLOCK
    return -(-length // step) * step


def check_embedding_scale(text: str) -> EmbeddingScale:
    """Return a scale by its name.

    Raises:
        ConfigError: an unknown one.
    """
    if text == "exact":
        return "exact"
    if text == "bf16":
        return "bf16"
    raise ConfigError(f"embedding_scale is {text!r}; give exact or bf16")


def _empty_cache(network: Network, batch: int, num_slots: int) -> Cache:
    config = network.config
    zeros = jnp.zeros(
        (config.num_layers, batch, config.num_kv_heads, num_slots, config.head_dim), DTYPES[network.dtype]
    )
    zeros = jax.lax.with_sharding_constraint(zeros, network.shardings.cache)
    return Cache(zeros, zeros)


def _prefill(
    network: Network,
    weights: Weights,
    cache: Cache,
    token_ids: jax.Array,
    starts: jax.Array,
    *,
    is_greedy: bool,
) -> tuple[Choice | jax.Array, Cache]:
    """Compute a batch of prompts; return the choice (or the logits) of the token after each, and the cache."""
    length = token_ids.shape[1]
    x, cache, _ = forward(network, weights, cache, token_ids, starts, first_slot=0, num_keys=length)
    return _next(network, weights, x[:, -1], is_greedy), cache


def _decode(
    network: Network,
    weights: Weights,
    cache: Cache,
    token_ids: jax.Array,
    starts: jax.Array,
    slot: jax.Array,
    *,
    is_greedy: bool,
) -> tuple[Choice | jax.Array, Cache]:
    """Compute one token of each sequence, int32 [B], in a slot; return as `_prefill` does."""
    num_slots = cache.keys.shape[3]
    x, cache, _ = forward(network, weights, cache, token_ids[:, None], starts, first_slot=slot, num_keys=num_slots)
    return _next(network, weights, x[:, 0], is_greedy), cache


def _next(network: Network, weights: Weights, x: jax.Array, is_greedy: bool) -> Choice | jax.Array:
    scores = network.constrain(logits(network, weights, x), DATA, TENSOR)
    return choose(network, scores) if is_greedy else scores


def _losses(network: Network, weights: Weights, token_ids: jax.Array, starts: jax.Array) -> jax.Array:
    """Cross entropy in nats of the token after each column, float32 [B, T]; the last column is meaningless."""
    batch, length = token_ids.shape
    cache = _empty_cache(network, batch, length)
    x, _, _ = forward(network, weights, cache, token_ids, starts, first_slot=0, num_keys=length)
    targets = jnp.roll(token_ids, -1, axis=1)
    # A power of 2 of columns at a time, which divides the padded length.
    columns = min(LENGTH_STEP, 1 << max(0, (LOSS_ROWS // batch).bit_length() - 1))

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores = network.constrain(logits(network, weights, block[0]), DATA, None, TENSOR)
        chosen = jnp.take_along_axis(scores, block[1][..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    blocks = x.reshape(batch, -1, columns, x.shape[-1]).swapaxes(0, 1)
    losses = jax.lax.map(of_block, (blocks, targets.reshape(batch, -1, columns).swapaxes(0, 1)))
    return losses.swapaxes(0, 1).reshape(batch, length)


def _states(network: Network, weights: Weights, token_ids: jax.Array, starts: jax.Array) -> jax.Array:
    """Residual stream after the embedding and after each layer, float32 [num_layers + 1, B, T, hidden_size]."""
    batch, length = token_ids.shape
    cache = _empty_cache(network, batch, length)
    _, _, states = forward(network, weights, cache, token_ids, starts, first_slot=0, num_keys=length, keep_states=True)
    return jnp.concatenate([embed(network, weights, token_ids)[None], states])
