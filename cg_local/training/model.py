"""The Gemma-1 forward pass and loss in JAX on packed batches, for training only.

Owns attention within documents, the joined products and the loss. A layer's arithmetic is that of
`cg_local.jax_backend.layers`, which inference in JAX shares; here they are unrolled, because
a checkpoint keeps the weights of each layer apart.
Invariant: on one document it computes what transformers' GemmaForCausalLM computes in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cg_local.errors import TrainingError
from cg_local.jax_backend.layers import LAYER_NAMES, decoder_layer, rms_norm, rotary_angles, rotate
from cg_local.training.products import matmul

Params = dict[str, jax.Array]
"""Weights by short name; matrices are [input_size, output_size], the transpose of the published layout."""

MASKED = -1e30

EMBEDDING_DEVIATION = 0.02
"""Initial deviation of the embedding: `initializer_range` of GemmaConfig."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Gemma-1 model; names as in Hugging Face's config.json.

    Attributes:
        vocab_size: rows of the embedding, which is also the output head.
        hidden_size: width of the residual stream; a multiple of 256 so that every quantized format applies.
        intermediate_size: width of the gated MLP; a multiple of 256.
        num_layers: decoder layers.
        num_heads: query heads; num_heads * head_dim is a multiple of 256.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: width of a head; even.
        rope_theta: base of the rotary angles; 10000 in CodeGemma.
        rms_norm_eps: 1e-6 in CodeGemma.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def check(self) -> None:
        """Raise TrainingError where a size breaks the rules in the attributes' description."""
        for name, size in (
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_heads * head_dim", self.num_heads * self.head_dim),
        ):
            if size % 256:
                raise TrainingError(
                    f"{name} is {size}; it must be a multiple of 256, the input size that every format takes."
                )
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise TrainingError(f"{self}: num_kv_heads must divide num_heads, and head_dim must be even.")


def initial_params(arch: Architecture, seed: int) -> Params:
    """Fresh weights: matrices normal with deviation 1 / sqrt(input size), embedding 0.02, norms 0.

    A tied embedding of unit scale would begin by predicting each token as its own successor with great confidence.
    """
    arch.check()
    rng = np.random.default_rng(seed)
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    shapes = {"q": (arch.hidden_size, q_size), "k": (arch.hidden_size, kv_size), "v": (arch.hidden_size, kv_size)}
    shapes |= {"o": (q_size, arch.hidden_size), "gate": (arch.hidden_size, arch.intermediate_size)}
    shapes |= {"up": (arch.hidden_size, arch.intermediate_size), "down": (arch.intermediate_size, arch.hidden_size)}
    # Projections back into the residual stream start small, so that depth does not inflate it (GPT-2's rule).
    damping = {"o": (2 * arch.num_layers) ** -0.5, "down": (2 * arch.num_layers) ** -0.5}
    params = {"embedding": rng.normal(0, EMBEDDING_DEVIATION, (arch.vocab_size, arch.hidden_size))}
    for layer in range(arch.num_layers):
        for name, shape in shapes.items():
            params[f"{layer}.{name}"] = rng.normal(0, shape[0] ** -0.5 * damping.get(name, 1.0), shape)
        params[f"{layer}.input_norm"] = np.zeros(arch.hidden_size)
        params[f"{layer}.mlp_norm"] = np.zeros(arch.hidden_size)
    params["final_norm"] = np.zeros(arch.hidden_size)
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def attend(q: jax.Array, k: jax.Array, v: jax.Array, document_ids: jax.Array, chunk: int) -> jax.Array:
    """Causal attention within documents.

    Args:
        q: float32 [B, T, num_heads, head_dim], rotated.
        k: float32 [B, T, num_kv_heads, head_dim], rotated.
        v: float32 like k.
        document_ids: int32 [B, T].
        chunk: queries handled together; keys behind a chunk's end are never touched, which saves up to half the work.

    Returns:
        float32 [B, T, num_heads * head_dim].
    """
    batch, length, num_heads, head_dim = q.shape
    groups = num_heads // k.shape[2]
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    outputs = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        rows = q[:, start:end].reshape(batch, end - start, -1, groups, head_dim).transpose(0, 2, 1, 3, 4)
        rows = rows.reshape(batch, -1, (end - start) * groups, head_dim) * head_dim**-0.5
        mask = document_ids[:, start:end, None] == document_ids[:, None, :end]
        mask &= jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        scores = matmul(rows, k[..., :end]).reshape(batch, -1, end - start, groups, end)
        weights = jax.nn.softmax(jnp.where(mask[:, None, :, None, :], scores, MASKED), axis=-1)
        mixed = matmul(weights.reshape(batch, -1, (end - start) * groups, end), v[:, :, :end])
        mixed = mixed.reshape(batch, -1, end - start, groups, head_dim).transpose(0, 2, 1, 3, 4)
        outputs.append(mixed.reshape(batch, end - start, num_heads * head_dim))
    return jnp.concatenate(outputs, axis=1)


def attention_chunk() -> int:
    """Queries that `attend` handles together: 64 measured best on two cores; a GPU wants fewer, larger products."""
    return 64 if jax.default_backend() == "cpu" else 256


def project(x: jax.Array, *weights: jax.Array) -> list[jax.Array]:
    """x @ each of the weights, as one product: narrow matrices alone do not keep the cores busy."""
    widths = [weight.shape[1] for weight in weights]
    if len(weights) == 1:
        return [matmul(x, weights[0])]
    joined = matmul(x, jnp.concatenate(weights, axis=1))
    parts: list[jax.Array] = jnp.split(joined, np.cumsum(widths)[:-1].tolist(), axis=-1)
    return parts


def hidden_states(
    params: Params,
    arch: Architecture,
    token_ids: jax.Array,
    document_ids: jax.Array,
    positions: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """Final hidden states after the last norm.

    Args:
        params: weights.
        arch: sizes.
        token_ids: int32 [B, T].
        document_ids: int32 [B, T]; tokens attend within equal ids only.
        positions: int32 [B, T], from 0 at each document's first token.
        chunk: see `attend`; None: what suits the device.

    Returns:
        float32 [B, T, hidden_size].

    Source: transformers, models/gemma/modeling_gemma.py; google/gemma_pytorch, gemma/model.py.
    """
    chunk = chunk or attention_chunk()
    x = params["embedding"][token_ids] * arch.hidden_size**0.5
    cos, sin = rotary_angles(arch.head_dim, arch.rope_theta, positions)

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(rotate(q, cos, sin), rotate(k, cos, sin), v, document_ids, chunk)

    for layer in range(arch.num_layers):
        weights = {name: params[f"{layer}.{name}"] for name in LAYER_NAMES}
        x = decoder_layer(x, weights, arch.head_dim, arch.rms_norm_eps, attend=mix, project=project)
    return rms_norm(x, params["final_norm"], arch.rms_norm_eps)


def logits(params: Params, arch: Architecture, token_ids: jax.Array) -> jax.Array:
    """Logits, float32 [B, T, vocab_size], of sequences [B, T] that each are one document from position 0."""
    positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
    return hidden_states(params, arch, token_ids, jnp.ones_like(token_ids), positions) @ params["embedding"].T


def token_losses(hidden: jax.Array, embedding: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of each token, in nats.

    Args:
        hidden: float32 [N, hidden_size].
        embedding: float32 [vocab_size, hidden_size].
        targets: int32 [N].

    Returns:
        float32 [N].
    """
    # All logits at once: on two cores, chunks in lax.map run on one thread and take 1.6 times as long in all.
    scores = matmul(hidden, embedding.T)
    if jax.default_backend() == "cpu":
        return jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
    # A gather's gradient is a scatter into zeros as large as the logits; this one's is computed in passing.
    is_target = jnp.arange(scores.shape[-1]) == targets[:, None]
    return jax.nn.logsumexp(scores, axis=-1) - jnp.sum(jnp.where(is_target, scores, 0.0), axis=-1)


def batch_losses(
    params: Params, arch: Architecture, token_ids: jax.Array, document_ids: jax.Array, positions: jax.Array
) -> jax.Array:
    """Cross entropy in nats of the token after each position, float32 [B, T]; the last column predicts the row's first.

    Multiply by the batch's weights, which are 0 where there is no next token.
    """
    hidden = hidden_states(params, arch, token_ids, document_ids, positions)
    targets = jnp.roll(token_ids, -1, axis=1)
    flat = token_losses(hidden.reshape(-1, arch.hidden_size), params["embedding"], targets.reshape(-1))
    return flat.reshape(token_ids.shape)
