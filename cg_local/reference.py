"""The whole forward pass of Gemma 1 / CodeGemma in plain float32 NumPy: the oracle of every other path.

This file owns the arithmetic, written to be read. It does not cache, quantize or hurry. Invariant: everything is
computed in float32 straight from the stored weights, one tensor in memory at a time, each line once, in the order in
which the papers and the original code define it.

One layer, with x the residual stream [num_tokens, hidden_size]:

    x = x + o_proj(attention(rope(q_proj(h)), rope(k_proj(h)), v_proj(h)))     h = rms_norm(x, input_layernorm)
    x = x + down_proj(gelu(gate_proj(h)) * up_proj(h))                         h = rms_norm(x, post_attention_layernorm)

Sources: google/gemma_pytorch, gemma/model.py; transformers, models/gemma/modeling_gemma.py (the two agree; where their
order of rounding differs in float32, this file follows transformers, against which it is tested).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CapacityError, PromptError
from cg_local.packing import bfloat16_from_float32, float32_from_bfloat16

Array = NDArray[np.float32]
EmbeddingScale = Literal["exact", "bf16"]

# Query positions per block of attention scores: 8192 tokens and 16 heads take 128 MiB of scores at a time.
QUERY_BLOCK = 256


class TensorSource(Protocol):
    """What the forward pass needs of a model: a `Checkpoint`, or a test's dequantized matrices under the same names."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape and constants."""

    @property
    def tensor_names(self) -> Sequence[str]:
        """Hugging Face names; "lm_head.weight" is among them only where the head is not the embedding."""

    def tensor(self, name: str) -> Array:
        """A whole tensor; a matrix is [outputs, inputs], a norm weight is stored as an offset from 1."""


@runtime_checkable
class InputObserver(Protocol):
    """A source of tensors that wants to see what its matrices are multiplied with."""

    def observe(self, name: str, x: Array) -> None:
        """Take the input of a matrix, float32 [num_tokens, inputs], before it is used; it must not be changed."""


def logits(
    source: str | Path | TensorSource, token_ids: Sequence[int], *, embedding_scale: EmbeddingScale = "exact"
) -> Array:
    """Compute the logits of the next token at every position.

    Args:
        source: a checkpoint folder, or an opened source of tensors.
        token_ids: the whole sequence, BOS included, each in 0..vocab_size - 1.
        embedding_scale: "exact" multiplies embeddings by sqrt(hidden_size) in float32, as transformers does in float32;
            "bf16" by that number rounded to bfloat16 (45.25 in 2B, 55.5 in 7B), as the models were trained.

    Returns:
        float32 [num_tokens, vocab_size].

    Raises:
        PromptError: no tokens, or an id outside the vocabulary.
        CapacityError: more tokens than max_position_embeddings.
        CheckpointError, ConfigError: the folder is not a readable checkpoint.

    Source: transformers, models/gemma/modeling_gemma.py, GemmaForCausalLM: the head is the unscaled embedding.
    """
    opened = open_checkpoint(source) if isinstance(source, (str, Path)) else source
    for x in residual_stream(opened, token_ids, embedding_scale=embedding_scale):
        last = x
    return output_logits(opened, last)


def output_logits(source: TensorSource, x: Array) -> Array:
    """Normalize the residual stream after the last layer and apply the head; float32 [num_tokens, vocab_size]."""
    normed = rms_norm(x, source.tensor("model.norm.weight"), source.config.rms_norm_eps)
    head = "lm_head.weight" if "lm_head.weight" in source.tensor_names else "model.embed_tokens.weight"
    return linear(normed, source.tensor(head))


def residual_stream(
    source: TensorSource, token_ids: Sequence[int], *, embedding_scale: EmbeddingScale = "exact"
) -> Iterator[Array]:
    """Yield the residual stream, float32 [num_tokens, hidden_size]: after the embedding, then after each layer.

    Arguments and errors as in `logits`.
    """
    config = source.config
    ids = _checked_ids(token_ids, config)
    x = embed(source.tensor("model.embed_tokens.weight"), ids, embedding_scale)
    yield x
    cos, sin = rotary_table(np.arange(len(ids)), config.head_dim, config.rope_theta)
    for layer in range(config.num_layers):
        x = x + attention_branch(source, layer, x, cos, sin)
        x = x + feed_forward_branch(source, layer, x)
        yield x


def attention_branch(source: TensorSource, layer: int, x: Array, cos: Array, sin: Array) -> Array:
    """Return what a layer's attention adds to the residual stream, float32 [num_tokens, hidden_size]."""
    prefix = f"model.layers.{layer}."
    h = rms_norm(x, source.tensor(prefix + "input_layernorm.weight"), source.config.rms_norm_eps)
    return self_attention(source, prefix + "self_attn.", h, cos, sin)


def feed_forward_branch(source: TensorSource, layer: int, x: Array) -> Array:
    """Return what a layer's feed-forward network adds to the residual stream, float32 [num_tokens, hidden_size]."""
    prefix = f"model.layers.{layer}."
    h = rms_norm(x, source.tensor(prefix + "post_attention_layernorm.weight"), source.config.rms_norm_eps)
    return feed_forward(source, prefix + "mlp.", h)


def embed(table: Array, token_ids: NDArray[np.int64], embedding_scale: EmbeddingScale) -> Array:
    """Look up token embeddings and scale them by sqrt(hidden_size).

    Args:
        table: float32 [vocab_size, hidden_size].
        token_ids: int64 [num_tokens].
        embedding_scale: see `logits`.

    Source: google/gemma_pytorch, gemma/model.py, GemmaForCausalLM.forward (normalizer = hidden_size**0.5 in the
    activations' type); huggingface/transformers pull request 29402 on its rounding.
    """
    scale = np.float32(math.sqrt(table.shape[1]))
    if embedding_scale == "bf16":
        scale = float32_from_bfloat16(bfloat16_from_float32(scale.reshape(1)))[0]
    embedded: Array = table[token_ids] * scale
    return embedded


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale each row to unit root mean square, then by (1 + weight).

    Args:
        x: float32 [num_tokens, hidden_size].
        weight: float32 [hidden_size], stored as an offset from 1.
        eps: added to the mean square; 1e-6 in CodeGemma.

    Source: google/gemma_pytorch, gemma/model.py, RMSNorm.
    """
    mean_square: Array = np.mean(x * x, axis=-1, keepdims=True)
    root: Array = np.sqrt(mean_square + np.float32(eps))
    return x / root * (1 + weight)


def rotary_table(positions: NDArray[np.int64], head_dim: int, theta: float) -> tuple[Array, Array]:
    """Return cosine and sine of every rotary angle, float32 [num_tokens, head_dim / 2] each.

    Args:
        positions: int64 [num_tokens], 0 at BOS.
        head_dim: width of a head.
        theta: base; frequency i is theta ** (-2 i / head_dim).

    Source: arXiv 2104.09864, section 3.2.2; in float32 like transformers' GemmaRotaryEmbedding.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    frequencies = 1 / np.float32(theta) ** exponents
    angles = positions.astype(np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (i, i + head_dim / 2) of every head by their position's angles.

    Gemma pairs the halves of a head, not neighbours.

    Args:
        x: float32 [num_tokens, heads, head_dim].
        cos, sin: float32 [num_tokens, head_dim / 2], from `rotary_table`.

    Source: transformers, models/gemma/modeling_gemma.py, rotate_half.
    """
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def self_attention(source: TensorSource, prefix: str, h: Array, cos: Array, sin: Array) -> Array:
    """Project to queries, keys and values, attend, and project back; float32 [num_tokens, hidden_size]."""
    config = source.config

    def heads(name: str) -> Array:
        return project(source, prefix + name, h).reshape(len(h), -1, config.head_dim)

    queries = rope(heads("q_proj.weight"), cos, sin)
    keys = rope(heads("k_proj.weight"), cos, sin)
    mixed = attention(queries, keys, heads("v_proj.weight"))
    return project(source, prefix + "o_proj.weight", mixed.reshape(len(h), -1))


def attention(queries: Array, keys: Array, values: Array) -> Array:
    """Mix values by the causal softmax of scaled query-key products.

    Args:
        queries: float32 [num_tokens, num_heads, head_dim].
        keys, values: float32 [num_tokens, num_kv_heads, head_dim]; each serves num_heads / num_kv_heads consecutive
            query heads (one for all in multi-query attention, one each in multi-head attention).

    Returns:
        float32 [num_tokens, num_heads, head_dim].

    Source: arXiv 1706.03762, section 3.2.1; scale 1 / sqrt(head_dim) and float32 softmax as in google/gemma_pytorch.
    """
    num_tokens, num_heads, head_dim = queries.shape
    heads_per_key = num_heads // keys.shape[1]
    # [num_kv_heads, heads_per_key, num_tokens, head_dim] against [num_kv_heads, 1, num_tokens, head_dim]
    grouped = queries.reshape(num_tokens, -1, heads_per_key, head_dim).transpose(1, 2, 0, 3)
    keys, values = keys.transpose(1, 0, 2)[:, None], values.transpose(1, 0, 2)[:, None]
    mixed = np.empty_like(grouped)
    for start in range(0, num_tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, num_tokens)
        scores = grouped[:, :, start:stop] @ keys[:, :, :stop].swapaxes(-1, -2) * np.float32(1 / math.sqrt(head_dim))
        is_future = np.arange(stop)[None, :] > np.arange(start, stop)[:, None]
        scores[:, :, is_future] = -np.inf
        mixed[:, :, start:stop] = softmax(scores) @ values[:, :, :stop]
    attended: Array = mixed.transpose(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)
    return attended


def softmax(scores: Array) -> Array:
    """Exponentiate and normalize along the last axis; -inf gives 0."""
    exponentials: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def feed_forward(source: TensorSource, prefix: str, h: Array) -> Array:
    """GeGLU: down_proj(gelu(gate_proj(h)) * up_proj(h)); float32 [num_tokens, hidden_size].

    Source: arXiv 2002.05202.
    """
    gate = gelu(project(source, prefix + "gate_proj.weight", h))
    up = project(source, prefix + "up_proj.weight", h)
    return project(source, prefix + "down_proj.weight", gate * up)


def gelu(x: Array) -> Array:
    """GELU by its tanh approximation, which Gemma means even where its config.json says plain "gelu".

    Source: arXiv 1606.08415, section 2; google/gemma_pytorch pull request 37.
    """
    # In place where possible: this is the widest array of the pass.
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner


def project(source: TensorSource, name: str, x: Array) -> Array:
    """Multiply rows by a matrix of the source, which may want to see them."""
    if isinstance(source, InputObserver):
        source.observe(name, x)
    return linear(x, source.tensor(name))


def linear(x: Array, weight: Array) -> Array:
    """Multiply rows by a stored matrix: float32 [num_tokens, inputs], [outputs, inputs] -> [num_tokens, outputs]."""
    product: Array = x @ weight.T
    return product


def _checked_ids(token_ids: Sequence[int], config: ModelConfig) -> NDArray[np.int64]:
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise PromptError(f"token_ids has shape {list(ids.shape)} and type {ids.dtype}; give a flat list of token ids")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = int(ids[(ids < 0) | (ids >= config.vocab_size)][0])
        raise PromptError(f"token id {wrong} is outside the vocabulary; give ids from 0 to {config.vocab_size - 1}")
    if len(ids) > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise CapacityError(f"{len(ids)} tokens do not fit the model's context of {limit}; give at most {limit}")
    return ids.astype(np.int64)
