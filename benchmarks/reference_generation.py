"""Greedy generation with the reference forward pass: float32 NumPy straight from the checkpoint, with a K/V cache.

This file owns the cache and the loop. All arithmetic is `cg_local.reference`'s. Invariant: the logits after each token
are those of `cg_local.reference.logits` over the whole text, up to the rounding of float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.reference import Array


class CachedReference:
    """The reference model of a checkpoint, all weights in memory as float32.

    Args:
        checkpoint: folder in the Hugging Face layout.

    Raises:
        CheckpointError, ConfigError: the folder is not a readable checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        opened = open_checkpoint(checkpoint)
        self.config = opened.config
        self._weights = {name: np.ascontiguousarray(opened.tensor(name)) for name in opened.tensor_names}
        self._head = self._weights.get("lm_head.weight", self._weights["model.embed_tokens.weight"])
        self._cache: list[tuple[Array, Array]] = []

    @property
    def tensor_names(self) -> list[str]:
        """As `reference.TensorSource` has it."""
        return list(self._weights)

    def tensor(self, name: str) -> Array:
        """As `reference.TensorSource` has it."""
        return self._weights[name]

    def generate(self, token_ids: Collection[int], max_tokens: int, stop_ids: Collection[int]) -> tuple[list[int], str]:
        """Choose the likeliest token again and again.

        Args:
            token_ids: the prompt.
            max_tokens: most tokens to choose; with the prompt at most max_position_embeddings.
            stop_ids: tokens that end the answer and are no part of it.

        Returns:
            The chosen tokens, and why they end: "stop_id" or "max_tokens".
        """
        answer: list[int] = []
        logits = self.start(token_ids)
        while len(answer) < max_tokens:
            # np.argmax takes the first of equals, as the engine's greedy choice does.
            token_id = int(np.argmax(logits))
            if token_id in stop_ids:
                return answer, "stop_id"
            answer.append(token_id)
            if len(answer) < max_tokens:
                logits = self.append(token_id)
        return answer, "max_tokens"

    def start(self, token_ids: Collection[int]) -> Array:
        """Forget all, compute a prompt, return the logits after it: float32 [vocab_size]."""
        empty = np.empty((0, self.config.num_kv_heads, self.config.head_dim), np.float32)
        self._cache = [(empty, empty)] * self.config.num_layers
        return self._step(np.array(list(token_ids), np.int64))

    def append(self, token_id: int) -> Array:
        """Compute one more token, return the logits after it: float32 [vocab_size]."""
        return self._step(np.array([token_id], np.int64))

    def _step(self, token_ids: NDArray[np.int64]) -> Array:
        config, eps = self.config, self.config.rms_norm_eps
        first = len(self._cache[0][0])
        positions = np.arange(first, first + len(token_ids))
        rotation = reference.rotary_table(positions, config.head_dim, config.rope_theta)
        x = reference.embed(self._weights["model.embed_tokens.weight"], token_ids, "exact")
        for layer in range(config.num_layers):
            prefix = f"model.layers.{layer}."
            h = reference.rms_norm(x, self._weights[prefix + "input_layernorm.weight"], eps)
            x = x + self._self_attention(layer, prefix + "self_attn.", h, rotation)
            h = reference.rms_norm(x, self._weights[prefix + "post_attention_layernorm.weight"], eps)
            x = x + reference.feed_forward(self, prefix + "mlp.", h)
        last = reference.rms_norm(x[-1:], self._weights["model.norm.weight"], eps)
        logits: Array = reference.linear(last, self._head)[0]
        return logits

    def _self_attention(self, layer: int, prefix: str, h: Array, rotation: tuple[Array, Array]) -> Array:
        def heads(name: str) -> Array:
            return reference.linear(h, self._weights[prefix + name]).reshape(len(h), -1, self.config.head_dim)

        queries = reference.rope(heads("q_proj.weight"), *rotation)
        keys = np.concatenate([self._cache[layer][0], reference.rope(heads("k_proj.weight"), *rotation)])
        values = np.concatenate([self._cache[layer][1], heads("v_proj.weight")])
        self._cache[layer] = keys, values
        # A prompt is attended by the reference itself; one later token sees everything and needs no mask.
        attend = reference.attention if len(h) == len(keys) else _attend_all
        mixed = attend(queries, keys, values).reshape(len(h), -1)
        return reference.linear(mixed, self._weights[prefix + "o_proj.weight"])


def _attend_all(queries: Array, keys: Array, values: Array) -> Array:
    """Mix values by the softmax of one token's scaled query-key products; arguments as `reference.attention`."""
    num_tokens, num_heads, head_dim = queries.shape
    grouped = queries.reshape(keys.shape[1], num_heads // keys.shape[1], head_dim)
    scores = grouped @ keys.transpose(1, 2, 0) * np.float32(1 / math.sqrt(head_dim))
    mixed: Array = reference.softmax(scores) @ values.transpose(1, 0, 2)
    return mixed.reshape(num_tokens, num_heads, head_dim)
