"""The arithmetic of figures: spreads, what a token must read, what a prompt must compute.

This file owns formulas and measures nothing. Invariant: a figure that is compared between engines comes from the same
formula for each of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cg_local.config import ModelConfig
from cg_local.kv_cache import page_bytes
from cg_local.model_folder import EMBEDDING, HEAD, ModelFolder

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """Return median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def bytes_per_token(folder: ModelFolder, depth: int, kv_dtype: str) -> int:
    """Return what one decode step must read: every weight once, and K and V of the tokens before.

    The embedding counts once, as the output head; the one row looked up for the input does not.

    Args:
        folder: of the model.
        depth: tokens with K and V.
        kv_dtype: how those are kept.
    """
    weights = sum(matrix.num_bytes for matrix in folder.matrices.values())
    if HEAD in folder.matrices:
        weights -= folder.matrices[EMBEDDING].num_bytes
    gains = sum(gain.nbytes for gain in folder.gains.values())
    return int(weights + gains) + depth * page_bytes(folder.config, 1, kv_dtype)


def matmul_parameters(config: ModelConfig) -> int:
    """Return how many weights a token is multiplied by in all layers; the output head is not among them."""
    return sum(
        shape[0] * shape[1] for name, shape in config.tensor_shapes().items() if len(shape) == 2 and ".layers." in name
    )


def prefill_operations(config: ModelConfig, num_tokens: int) -> int:
    """Return the operations of a prompt, a multiplication and an addition counted as 2.

    The products of all layers for every token, causal attention (query times key and weight times value, for each pair
    of a token and one at or before it) and the output head for the last token.

    Args:
        config: of the model.
        num_tokens: of the prompt, nothing of it cached.
    """
    pairs = num_tokens * (num_tokens + 1) // 2
    attention = 2 * 2 * config.num_layers * config.num_heads * config.head_dim * pairs
    head = 2 * config.vocab_size * config.hidden_size
    return 2 * matmul_parameters(config) * num_tokens + attention + head
