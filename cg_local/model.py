"""The Gemma forward pass over kernels: token ids, positions and block tables to logits.

This file owns the order of operations of the network and the activations between them. It does not know requests: what
belongs to one sequence reaches it as a `SequenceSpan`. Invariant: a token's logits depend on its sequence alone, bit
for bit, whatever else is in the step and however the prompt was cut into chunks.

Source of the network: google/gemma_pytorch, gemma/model.py; `reference.py` is the same in plain NumPy.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.errors import ConfigError, ModelFolderError
from cg_local.kv_cache import KVCache
from cg_local.model_folder import ModelFolder
from cg_local.packing import GROUP, TILE_ROWS, PackedMatrix, dequantize_rows, num_tiles
from cg_local.workspace import Workspace

Floats = NDArray[np.float32]

# How the inputs of products with 8-bit weights are rounded; 4- and 6-bit weights always take int8.
ACTIVATIONS = ("int8", "int16")
# Up to this many new tokens of a sequence, attention spreads its context over the threads instead of its tokens.
DECODE_TOKENS = 16
_NO_GAIN, _NO_EPS = np.zeros(0, np.float32), np.float32(0)
_NO_GAIN.flags.writeable = False  # like the gains of a mapped folder, so that one compiled kernel serves both
_NO_FLOATS = np.zeros((0, 0), np.float32)


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


class Activations:
    """The input of one or more matrix products, brought into the layout of each weight format when first needed.

    Args:
        x: float32 [num_tokens, columns].
        workspace: where the layouts are kept; they last until the next Activations with the same name.
        name: distinguishes inputs whose layouts must not share memory.
        norm: gain, float32 [columns], and eps of the RMSNorm that x goes through first; None: x as it is.
    """

    def __init__(
        self, x: Floats, workspace: Workspace, name: str, norm: tuple[Floats, np.float32] | None = None
    ) -> None:
        self._x, self._workspace, self._name, self._norm = x, workspace, name, norm
        self.num_tokens, self.columns = x.shape
        self.tokens_per_block: int = 1 if self.num_tokens == 1 else kernels.BLOCK_TOKENS
        self.num_blocks: int = -(-self.num_tokens // self.tokens_per_block)
        self._int8: kernels.Quantized | None = None
        self._int16: tuple[NDArray[np.int16], Floats] | None = None
        self._blocked: Floats | None = None

    @property
    def padded_tokens(self) -> int:
        """The number of tokens with those that fill up the last block."""
        return self.num_blocks * self.tokens_per_block

    def int8(self) -> kernels.Quantized:
        """Return codes, scales, sums and corrections as `kernels.quantize_activations` writes them."""
        if self._int8 is None:
            gain, eps = self._norm or (_NO_GAIN, _NO_EPS)
            self._int8 = int8_blocks(self, self.columns, self._workspace, self._name)
            kernels.quantize_activations(self._x, gain, eps, *self._int8)
        return self._int8

    def int16(self) -> tuple[NDArray[np.int16], Floats]:
        """Return codes and scales as `kernels.quantize_activations_int16` writes them."""
        if self._int16 is None:
            shape = self.num_blocks, self.columns // GROUP, self.tokens_per_block
            codes = self._workspace.array(self._name + ".int16_codes", (*shape, GROUP), np.int16)
            scales = self._workspace.array(self._name + ".int16_scales", shape)
            kernels.quantize_activations_int16(self._normalized(), codes, scales)
            self._int16 = codes, scales
        return self._int16

    def blocked(self) -> Floats:
        """Return float32 [blocks, columns, tokens_per_block] as `kernels.block_activations` writes it."""
        if self._blocked is None:
            shape = self.num_blocks, self.columns, self.tokens_per_block
            self._blocked = self._workspace.array(self._name + ".blocked", shape)
            kernels.block_activations(self._normalized(), self._blocked)
        return self._blocked

    def _normalized(self) -> Floats:
        if self._norm is None:
            return self._x
        normalized: Floats = self._workspace.array(self._name + ".normalized", self._x.shape)
        kernels.rms_norm(self._x, *self._norm, normalized)
        return normalized


class GatedActivations:
    """The quantized input of the down projection, as the fused gate and up projections leave it."""

    def __init__(self, like: Activations, columns: int, workspace: Workspace, name: str) -> None:
        self.num_tokens, self.padded_tokens = like.num_tokens, like.padded_tokens
        self._int8 = int8_blocks(like, columns, workspace, name)

    def int8(self) -> kernels.Quantized:
        """Return codes, scales, sums and corrections."""
        return self._int8


def int8_blocks(like: Activations, columns: int, workspace: Workspace, name: str) -> kernels.Quantized:
    """Return uninitialized arrays for the quantized form of `columns` columns, in the blocks of other activations."""
    shape = like.num_blocks, columns // GROUP, like.tokens_per_block
    return (
        workspace.array(name + ".codes", (*shape, GROUP), np.int8),
        workspace.array(name + ".scales", shape),
        workspace.array(name + ".sums", shape, np.int32),
        workspace.array(name + ".corrections", (*shape, GROUP // 8), np.int32),
    )


class Projections:
    """Weight matrices with a common input, multiplied together.

    Integer formats run in one parallel region on the generated kernels; the portable ones, bf16 and 8-bit weights with
    16-bit activations one by one.

    Args:
        matrices: packed, usually mapped from a model folder, with equal numbers of columns.
        names: of their outputs in the workspace.
        prefix: what messages put before a name.
        rounding: of ACTIVATIONS, for 8-bit weights.

    Raises:
        ModelFolderError: the engine has no kernel for a matrix's format.
    """

    def __init__(
        self, matrices: Sequence[PackedMatrix], names: Sequence[str], rounding: str = "int8", *, prefix: str = ""
    ) -> None:
        self._names, self._matrices = tuple(names), tuple(matrices)
        for matrix, name in zip(matrices, names, strict=True):
            if matrix.format not in kernels.MATMUL:
                raise ModelFolderError(f"{prefix}{name}: the engine has no kernel for {matrix.format}; quantize again")
        self._rows = [num_tiles(matrix.shape[0]) * TILE_ROWS for matrix in matrices]
        self._outs: list[Floats] = []
        self._parts = [tuple(_kernel_view(part) for part in matrix.parts.values()) for matrix in matrices]
        self._takes_int16 = [rounding == "int16" and matrix.format == "i8g64" for matrix in matrices]
        fused = kernels.FUSED_FORMATS
        pairs = zip(matrices, self._takes_int16, strict=True)
        self._fused = [index for index, (m, int16) in enumerate(pairs) if m.format in fused and not int16]
        self.is_fused = len(self._fused) == len(matrices)
        self._jobs = kernels.table_of_jobs([matrices[index] for index in self._fused])

    def __call__(self, x: Activations | GatedActivations, workspace: Workspace) -> list[Floats]:
        """Return x times each transposed matrix, float32 [num_tokens, rows]; valid until these names' next product."""
        padded = x.padded_tokens
        outs = [workspace.array(name, (padded, rows)) for name, rows in zip(self._names, self._rows, strict=True)]
        if self._fused:
            self._store_to(outs)
            self._run(x, kernels.STORE, workspace)
        for index, out in enumerate(outs):
            if index not in self._fused:
                assert isinstance(x, Activations)  # `gate` fuses only before matrices that are fused too
                self._multiply(index, x, out)
        return [out[: x.num_tokens, : matrix.shape[0]] for out, matrix in zip(outs, self._matrices, strict=True)]

    def _store_to(self, outs: list[Floats]) -> None:
        """Enter where the fused products go, unless they went there the last time."""
        if len(outs) == len(self._outs) and all(map(operator.is_, outs, self._outs)):
            return
        for job, index in zip(self._jobs, self._fused, strict=True):
            job[kernels.OUT], job[kernels.STRIDE] = outs[index].ctypes.data, outs[index].shape[1]
        self._outs = outs

    def add_to(self, total: Floats, x: Activations | GatedActivations, workspace: Workspace) -> None:
        """Add the product of the only matrix to total, float32 [num_tokens, rows]."""
        if self.is_fused:
            self._run(x, kernels.ADD, workspace, total=total)
        else:
            total += self(x, workspace)[0]

    def _multiply(self, index: int, x: Activations, out: Floats) -> None:
        """Write the product of one matrix that is not fused."""
        parts, format = self._parts[index], self._matrices[index].format
        if self._takes_int16[index]:
            kernels.matmul_i8g64_int16(*parts, *x.int16(), out)
        else:
            kernels.MATMUL[format](*parts, *((x.blocked(),) if format == "bf16" else x.int8()[:3]), out)

    def gate(
        self, x: Activations, workspace: Workspace, name: str, following: Projections
    ) -> Activations | GatedActivations:
        """Return gelu_tanh(first product) * second product as the input of the following projections."""
        if self.is_fused and following.is_fused:
            gated = GatedActivations(x, self._matrices[0].shape[0], workspace, name)
            self._run(x, kernels.GATE, workspace, gated=gated)
            return gated
        gate, up = self(x, workspace)
        kernels.geglu(gate, up, gate)
        return Activations(gate, workspace, name)

    def _run(
        self,
        x: Activations | GatedActivations,
        mode: int,
        workspace: Workspace,
        total: Floats = _NO_FLOATS,
        gated: GatedActivations | None = None,
    ) -> None:
        int8 = x.int8()
        workers = int(numba.get_num_threads())
        scratch = workspace.array("scratch", (workers, kernels.scratch_floats(x.padded_tokens)))
        y = int8 if gated is None else gated.int8()
        kernels.run_products(self._jobs, int8, x.num_tokens, mode, total, y, scratch, workers)


def _kernel_view(part: NDArray[Any]) -> NDArray[Any]:
    """Return a part as the kernels take it: float16 as its bits."""
    array = np.asarray(part)
    return array.view(np.uint16) if array.dtype == np.float16 else array


@dataclass(frozen=True)
class Layer:
    """The weights of one transformer block; a norm is its gain (1 + the stored weight) and its eps."""

    attention_norm: tuple[Floats, np.float32]
    qkv: Projections
    o: Projections
    mlp_norm: tuple[Floats, np.float32]
    gate_up: Projections
    down: Projections


class Model:
    """A CodeGemma network over a mapped model folder.

    Args:
        folder: an opened model folder; it stays mapped as long as the model lives.
        activations: of ACTIVATIONS. "int16" rounds the inputs of 8-bit weights 257 times finer, so that a q8 model's
            error is that of its weights alone.

    Raises:
        ModelFolderError: a weight has a format without a kernel.
        ConfigError: an unknown kind of activations.
    """

    def __init__(self, folder: ModelFolder, *, activations: str = "int8") -> None:
        if activations not in ACTIVATIONS:
            raise ConfigError(f"activations is {activations!r}; give {' or '.join(ACTIVATIONS)}")
        self.activations = activations
        self.config = folder.config
        self.folder = folder
        self._embedding = folder.matrices["model.embed_tokens.weight"]
        head = folder.matrices.get("lm_head.weight", self._embedding)
        self._head = Projections([head], ["logits"], activations)
        self._eps = np.float32(self.config.rms_norm_eps)
        self._layers = [self._bind_layer(layer) for layer in range(self.config.num_layers)]
        self._final_norm = np.asarray(folder.gains["model.norm.weight"]), self._eps
        self._workspace = Workspace()
        half = np.arange(0, self.config.head_dim, 2, dtype=np.float32) / np.float32(self.config.head_dim)
        # float32 throughout, as transformers computes it; other orders differ at long positions.
        self._inverse_frequencies = np.float32(1) / np.power(np.float32(self.config.rope_theta), half)

    def _bind_layer(self, layer: int) -> Layer:
        prefix = f"model.layers.{layer}."
        matrices, gains = self.folder.matrices, self.folder.gains

        def projections(*names: str) -> Projections:
            # Outputs of one kind share memory over the layers.
            return Projections(
                [matrices[f"{prefix}{name}.weight"] for name in names], names, self.activations, prefix=prefix
            )

        def norm(name: str) -> tuple[Floats, np.float32]:
            return np.asarray(gains[f"{prefix}{name}.weight"]), self._eps

        return Layer(
            attention_norm=norm("input_layernorm"),
            qkv=projections("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            o=projections("self_attn.o_proj"),
            mlp_norm=norm("post_attention_layernorm"),
            gate_up=projections("mlp.gate_proj", "mlp.up_proj"),
            down=projections("mlp.down_proj"),
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
            self._attention(layer, index, x, rotation, slots, spans, cache)
            self._mlp(layer, x)
        if len(logit_rows) == 0:
            return np.empty((0, self.config.vocab_size), np.float32)
        final = Activations(x[logit_rows], self._workspace, "normalized", self._final_norm)
        return self._head(final, self._workspace)[0]

    def _attention(
        self,
        layer: Layer,
        index: int,
        x: Floats,
        rotation: tuple[Floats, Floats],
        slots: NDArray[np.int64],
        spans: Sequence[SequenceSpan],
        cache: KVCache,
    ) -> None:
        """Add the attention block's output to x."""
        num_tokens, head_dim = len(x), self.config.head_dim
        normalized = Activations(x, self._workspace, "normalized", layer.attention_norm)
        q, k, v = (out.reshape(num_tokens, -1, head_dim) for out in layer.qkv(normalized, self._workspace))
        kernels.rope(q, *rotation)
        kernels.rope(k, *rotation)
        is_mixed = cache.dtype == "int8"
        if is_mixed:  # so that a group's scale is not one column's
            for heads in (q, k, v):
                kernels.mix_columns(heads)
        keys, values = cache.keys[index], cache.values[index]
        kernels.write_pages(k, v, keys, values, slots)
        out = self._workspace.array("attention", (num_tokens, self.config.num_heads * head_dim))
        scale = np.float32(1 / math.sqrt(head_dim))
        for span in spans:
            rows = slice(span.start, span.start + span.num_tokens)
            attend = kernels.attend_decode if span.num_tokens <= DECODE_TOKENS else kernels.attend_prefill
            attend(q[rows], keys, values, span.block_table, span.first_position, scale, out[rows])
        if is_mixed:
            kernels.mix_columns(out.reshape(num_tokens, -1, head_dim))
        layer.o.add_to(x, Activations(out, self._workspace, "attention"), self._workspace)

    def _mlp(self, layer: Layer, x: Floats) -> None:
        """Add the MLP block's output to x."""
        normalized = Activations(x, self._workspace, "normalized", layer.mlp_norm)
        gated = layer.gate_up.gate(normalized, self._workspace, "mlp", layer.down)
        layer.down.add_to(x, gated, self._workspace)

    @staticmethod
    def _slots(span: SequenceSpan, page_size: int) -> NDArray[np.int64]:
        positions = np.arange(span.first_position, span.first_position + span.num_tokens)
        return span.block_table[positions // page_size].astype(np.int64) * page_size + positions % page_size
