"""The Gemma forward pass over kernels: token ids, positions and block tables to logits.

This file owns the order of operations of the network and the activations between them. It does not know requests: what
belongs to one sequence reaches it as a `SequenceSpan`. Invariant: a token's logits depend on its sequence alone, bit
for bit, whatever else is in the step and however the prompt was cut into chunks.

Source of the network: google/gemma_pytorch, gemma/model.py; `reference.py` is the same in plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.errors import ModelFolderError
from cg_local.kv_cache import KVCache
from cg_local.model_folder import ModelFolder
from cg_local.packing import GROUP, TILE_ROWS, PackedMatrix, dequantize_rows, num_tiles

Floats = NDArray[np.float32]

# Up to this many new tokens of a sequence, attention spreads its context over the threads instead of its tokens.
DECODE_TOKENS = 16


@dataclass(frozen=True)
class SequenceSpan:
    """The new tokens of one sequence in a step.

    Attributes:
        start: where they begin in the step's token ids.
        num_tokens: how many they are.
        first_position: position of the first one in its sequence; all positions before it have K and V in the pages.
        block_table: int32, page ids with room for first_position + num_tokens tokens.
    """

    start: int
    num_tokens: int
    first_position: int
    block_table: NDArray[np.int32]


class Workspace:
    """Named arrays that grow to the largest step seen, so that steps do not pay for fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> NDArray[Any]:
        """Return an uninitialized array; the next call with this name may reuse its memory."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)

    @property
    def num_bytes(self) -> int:
        """Bytes held at the moment."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Activations:
    """The input of one or more matrix products, brought into the layout of each weight format when first needed.

    Args:
        x: float32 [num_tokens, columns].
        workspace: where the layouts are kept; they last until the next Activations with the same name.
        name: distinguishes inputs whose layouts must not share memory.
    """

    def __init__(self, x: Floats, workspace: Workspace, name: str) -> None:
        self.x, self._workspace, self._name = x, workspace, name
        self.num_tokens, self.columns = x.shape
        self.tokens_per_block = 1 if self.num_tokens == 1 else kernels.BLOCK_TOKENS
        self.num_blocks = -(-self.num_tokens // self.tokens_per_block)
        self._int8: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None
        self._blocked: Floats | None = None

    def int8(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return codes, scales and sums as `kernels.quantize_activations` writes them."""
        if self._int8 is None:
            shape = self.num_blocks, self.columns // GROUP, self.tokens_per_block
            codes = self._workspace.array(self._name + ".codes", (*shape, GROUP), np.int8)
            scales = self._workspace.array(self._name + ".scales", shape)
            sums = self._workspace.array(self._name + ".sums", shape, np.int32)
            kernels.quantize_activations(self.x, codes, scales, sums)
            self._int8 = codes, scales, sums
        return self._int8

    def blocked(self) -> Floats:
        """Return float32 [blocks, columns, tokens_per_block] as `kernels.block_activations` writes it."""
        if self._blocked is None:
            shape = self.num_blocks, self.columns, self.tokens_per_block
            self._blocked = self._workspace.array(self._name + ".blocked", shape)
            kernels.block_activations(self.x, self._blocked)
        return self._blocked


class Linear:
    """One weight matrix, ready to be multiplied.

    Args:
        matrix: the packed matrix, usually mapped from a model folder.
        name: what messages call it.

    Raises:
        ModelFolderError: the engine has no kernel for the matrix's format.
    """

    def __init__(self, matrix: PackedMatrix, name: str) -> None:
        self.format, self.rows, self.name = matrix.format, matrix.shape[0], name
        self._padded_rows = num_tiles(self.rows) * TILE_ROWS
        parts = {part: np.asarray(array) for part, array in matrix.parts.items()}
        if self.format == "c4g32":
            halves = parts["super_scales"].view(np.uint16)
            self._weights: tuple[NDArray[Any], ...] = parts["codes"], parts["scales"], halves, parts["codebook"]
        elif self.format == "i8g64":
            self._weights = parts["codes"], parts["scales"].view(np.uint16)
        elif self.format == "bf16":
            self._weights = (parts["codes"],)
        else:
            raise ModelFolderError(f"{name}: the engine has no kernel for {self.format}; quantize again with q4 or q8")

    def __call__(self, x: Activations, workspace: Workspace) -> Floats:
        """Return x times the transposed matrix, float32 [num_tokens, rows]; valid until this name's next product."""
        out = workspace.array(self.name, (x.num_blocks * x.tokens_per_block, self._padded_rows))
        if self.format == "bf16":
            kernels.matmul_bf16(*self._weights, x.blocked(), out)
        elif self.format == "c4g32":
            kernels.matmul_c4g32(*self._weights, *x.int8(), out)
        else:
            kernels.matmul_i8g64(*self._weights, *x.int8(), out)
        return out[: x.num_tokens, : self.rows]


@dataclass(frozen=True)
class Layer:
    """The weights of one transformer block; gains are 1 + the stored norm weight."""

    attention_gain: Floats
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_gain: Floats
    gate: Linear
    up: Linear
    down: Linear


class Model:
    """A CodeGemma network over a mapped model folder.

    Args:
        folder: an opened model folder; it stays mapped as long as the model lives.

    Raises:
        ModelFolderError: a weight has a format without a kernel.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self.config = folder.config
        self.folder = folder
        self._embedding = folder.matrices["model.embed_tokens.weight"]
        self._head = Linear(folder.matrices.get("lm_head.weight", self._embedding), "logits")
        self._layers = [self._bind_layer(layer) for layer in range(self.config.num_layers)]
        self._final_gain = np.asarray(folder.gains["model.norm.weight"])
        self._workspace = Workspace()
        half = np.arange(0, self.config.head_dim, 2, dtype=np.float32) / np.float32(self.config.head_dim)
        # float32 throughout, as transformers computes it; other orders differ at long positions.
        self._inverse_frequencies = np.float32(1) / np.power(np.float32(self.config.rope_theta), half)
        self._eps = np.float32(self.config.rms_norm_eps)

    def _bind_layer(self, layer: int) -> Layer:
        prefix = f"model.layers.{layer}."
        matrices, gains = self.folder.matrices, self.folder.gains

        def linear(name: str) -> Linear:
            # Outputs of one kind share memory over the layers.
            return Linear(matrices[f"{prefix}{name}.weight"], name)

        return Layer(
            attention_gain=np.asarray(gains[prefix + "input_layernorm.weight"]),
            q=linear("self_attn.q_proj"),
            k=linear("self_attn.k_proj"),
            v=linear("self_attn.v_proj"),
            o=linear("self_attn.o_proj"),
            mlp_gain=np.asarray(gains[prefix + "post_attention_layernorm.weight"]),
            gate=linear("mlp.gate_proj"),
            up=linear("mlp.up_proj"),
            down=linear("mlp.down_proj"),
        )

    @property
    def scratch_bytes(self) -> int:
        """Bytes of activations held at the moment."""
        return self._workspace.num_bytes

    def forward(
        self,
        token_ids: NDArray[np.int32],
        spans: Sequence[SequenceSpan],
        cache: KVCache,
        logit_rows: NDArray[np.integer],
    ) -> Floats:
        """Compute one step: write K and V of all tokens, return the logits of some.

        Args:
            token_ids: int32 [num_tokens], 0 .. vocab_size - 1; the tokens of all spans, one after the other.
            spans: who they belong to.
            cache: the pages that the block tables point into.
            logit_rows: which tokens' logits to compute, indices into token_ids.

        Returns:
            float32 [len(logit_rows), vocab_size]; valid until the next step.
        """
        positions = np.concatenate([np.arange(s.first_position, s.first_position + s.num_tokens) for s in spans])
        slots = np.concatenate([self._slots(span, cache.page_size) for span in spans])
        angles = positions.astype(np.float32)[:, None] * self._inverse_frequencies
        rotation = np.cos(angles), np.sin(angles)
        x = dequantize_rows(self._embedding, token_ids) * np.float32(math.sqrt(self.config.hidden_size))
        for index, layer in enumerate(self._layers):
            x += self._attention(layer, index, x, rotation, slots, spans, cache)
            x += self._mlp(layer, x)
        if len(logit_rows) == 0:
            return np.empty((0, self.config.vocab_size), np.float32)
        return self._head(self._normalized(x[logit_rows], self._final_gain), self._workspace)

    def _normalized(self, x: Floats, gain: Floats) -> Activations:
        out = self._workspace.array("normalized", x.shape)
        kernels.rms_norm(x, gain, self._eps, out)
        return Activations(out, self._workspace, "normalized")

    def _attention(
        self,
        layer: Layer,
        index: int,
        x: Floats,
        rotation: tuple[Floats, Floats],
        slots: NDArray[np.int64],
        spans: Sequence[SequenceSpan],
        cache: KVCache,
    ) -> Floats:
        normalized = self._normalized(x, layer.attention_gain)
        num_tokens, head_dim = len(x), self.config.head_dim
        q = layer.q(normalized, self._workspace).reshape(num_tokens, self.config.num_heads, head_dim)
        k = layer.k(normalized, self._workspace).reshape(num_tokens, self.config.num_kv_heads, head_dim)
        v = layer.v(normalized, self._workspace).reshape(num_tokens, self.config.num_kv_heads, head_dim)
        kernels.rope(q, *rotation)
        kernels.rope(k, *rotation)
        keys, values = cache.keys[index], cache.values[index]
        kernels.write_pages(k, v, keys, values, slots)
        out = self._workspace.array("attention", (num_tokens, self.config.num_heads * head_dim))
        scale = np.float32(1 / math.sqrt(head_dim))
        for span in spans:
            rows = slice(span.start, span.start + span.num_tokens)
            attend = kernels.attend_decode if span.num_tokens <= DECODE_TOKENS else kernels.attend_prefill
            attend(q[rows], keys, values, span.block_table, span.first_position, scale, out[rows])
        return layer.o(Activations(out, self._workspace, "attention"), self._workspace)

    def _mlp(self, layer: Layer, x: Floats) -> Floats:
        normalized = self._normalized(x, layer.mlp_gain)
        gate = layer.gate(normalized, self._workspace)
        kernels.geglu(gate, layer.up(normalized, self._workspace), gate)
        return layer.down(Activations(gate, self._workspace, "mlp"), self._workspace)

    @staticmethod
    def _slots(span: SequenceSpan, page_size: int) -> NDArray[np.int64]:
        positions = np.arange(span.first_position, span.first_position + span.num_tokens)
        return span.block_table[positions // page_size].astype(np.int64) * page_size + positions % page_size
