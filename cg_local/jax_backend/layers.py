"""The arithmetic of one Gemma layer in JAX: what inference (`model`) and training (`cg_local.training`) have in common.

This file owns norm, rotation, gate and their order. It does not own how queries meet keys (a cache here, packed
documents there) nor how a product is computed (each matrix alone here, several joined there): both are handed in.
Invariant: norms, rotation and the residual stream are float32 whatever the type of the weights.

Matrices are [inputs, outputs], the transpose of the published layout, so that x @ w reads rows.

Sources: google/gemma_pytorch, gemma/model.py; transformers, models/gemma/modeling_gemma.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

LAYER_NAMES = ("input_norm", "mlp_norm", "q", "k", "v", "o", "gate", "up", "down")

Project = Callable[..., "list[jax.Array]"]
"""Takes x [..., inputs] and matrices [inputs, outputs]; returns float32 x @ w of each."""

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Takes queries, keys (not yet rotated) and values, float32 [B, T, heads, head_dim]; returns [B, T, all heads]."""


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Scale the last axis to unit root mean square, then by (1 + weight).

    Args:
        x: float32 [..., hidden_size].
        weight: float32 [hidden_size], stored as an offset from 1.
        eps: added to the mean square.

    Source: google/gemma_pytorch, gemma/model.py, RMSNorm.
    """
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * (1.0 + weight)


def rotary_angles(head_dim: int, theta: float, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32 [..., head_dim / 2], of the rotary angles at integer positions [...].

    Source: arXiv 2104.09864, section 3.2.2.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[..., None].astype(jnp.float32) * (1.0 / theta**exponents)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + head_dim / 2) of the last axis.

    x is [B, T, heads, head_dim]; cos and sin are [B, T, head_dim / 2].
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def decoder_layer(
    x: jax.Array, weights: Mapping[str, jax.Array], head_dim: int, eps: float, *, attend: Attend, project: Project
) -> jax.Array:
    """Add one layer's attention and MLP to the residual stream.

    Args:
        x: float32 [B, T, hidden_size].
        weights: of LAYER_NAMES.
        head_dim: width of a head.
        eps: of the norms.
        attend: rotates queries and keys and mixes the values.
        project: multiplies.
    """
    batch, length, _ = x.shape
    normed = rms_norm(x, weights["input_norm"], eps)
    q, k, v = (
        part.reshape(batch, length, -1, head_dim) for part in project(normed, weights["q"], weights["k"], weights["v"])
    )
    x = x + project(attend(q, k, v), weights["o"])[0]
    normed = rms_norm(x, weights["mlp_norm"], eps)
    # Gemma's "gelu" is the tanh approximation, whatever older configs say.
    gate, up = project(normed, weights["gate"], weights["up"])
    return x + project(jax.nn.gelu(gate, approximate=True) * up, weights["down"])[0]
