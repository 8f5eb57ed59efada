"""A checkpoint in one GGUF file: network, weights and vocabulary.

This file owns matching a file's metadata and tensors against Gemma's, and decoding rows. Invariant: as of any
`Checkpoint`, norm weights come out as offsets from 1 and matrices as [outputs, inputs], so that what is made of a GGUF
file is what is made of the same weights in the Hugging Face layout.

Conventions of Gemma in GGUF: norms hold 1 + w; queries and keys are not permuted; the head is the embedding. Source:
ggml-org/llama.cpp, convert_hf_to_gguf.py (GemmaModel) and src/llama-model.cpp (LLM_ARCH_GEMMA).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint.gguf_container import GgufContainer, GgufTensor
from cg_local.checkpoint.gguf_names import gguf_name
from cg_local.checkpoint.gguf_vocabulary import rebuild_tokenizer
from cg_local.checkpoint.published import EMBEDDING_NAME, HEAD_NAME, Checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CheckpointError, ConfigError
from cg_local.packing import float32_from_bfloat16
from cg_local.safetensors_file import shown

ARCHITECTURE = "gemma"
# Rows of the embedding in Google's own training checkpoints and files made of them, and the pieces there are: the rest
# is padding, which the Hugging Face layout leaves out. Source: google-deepmind/gemma, num_embed.
PADDED_ROWS, NUM_PIECES = 256_128, 256_000
INSTEAD = "use a Gemma 1 or CodeGemma file (architecture gemma), such as google/codegemma-2b-GGUF"
DAMAGED = "the file is damaged or was changed: download it again"

# Key behind "gemma." -> key of config.json.
DIMENSION_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
# What else a file may say about the network without changing it, judged in `_config_values`.
JUDGED_KEYS = frozenset(DIMENSION_KEYS) | {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
}
EXACT_TYPES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "F32": lambda data: data.view("<f4").astype(np.float32, copy=False),
    "F16": lambda data: data.view("<f2").astype(np.float32),
    "BF16": lambda data: float32_from_bfloat16(data.view("<u2")),
}


class GgufCheckpoint(Checkpoint):
    """Published weights in a GGUF file; the attributes are those of `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        """Open a file and check that it holds a whole Gemma 1 network; see `open_checkpoint`."""
        self._container = GgufContainer(path)
        self.path, self.source_files, self.tokenizer_path = path, (path,), None
        self._metadata = self._container.metadata
        self._check_kind()
        self.config_bytes = json.dumps(self._config_values(), indent=2).encode() + b"\n"
        self.config = ModelConfig.from_bytes(self.config_bytes, str(path))
        self._check_tensors()
        self.has_separate_head = gguf_name(HEAD_NAME) in self._container.tensors and self.head_differs()
        self.tensor_names = (*self.config.tensor_shapes(), *((HEAD_NAME,) if self.has_separate_head else ()))
        template = self._metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) and template else None
        self.terms = {}
        self.is_free_of_gemma_terms = self._metadata.get("general.license") == "apache-2.0"
        self.notices = self._make_notices()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of `tensor_names`, without rows of padding."""
        rows, *columns = self._tensor(name).shape
        return (min(rows, self.config.vocab_size) if name in (EMBEDDING_NAME, HEAD_NAME) else rows, *columns)

    def dtype(self, name: str) -> str:
        """Return how a tensor is stored: "F32", "F16", "BF16", "Q4_K" ..."""
        return self._tensor(name).type.name

    def tokenizer_bytes(self) -> bytes:
        """Return a SentencePiece model of the file's tokens.

        Raises:
            CheckpointError: the file has no tokens, or they are not a SentencePiece vocabulary.
        """
        return rebuild_tokenizer(self._metadata, self.config.vocab_size, str(self.path))

    def _decoded(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        tensor = self._tensor(name)
        if start == stop:  # the package gguf does not decode nothing
            return np.empty((0, math.prod(tensor.shape[1:])), np.float32)
        data = self._container.read(tensor.name, start * tensor.row_bytes, stop * tensor.row_bytes)
        values = _decode(data.reshape(stop - start, tensor.row_bytes), tensor.type.name, self.path)
        if len(tensor.shape) == 1:
            # The file holds 1 + w. The difference is exact for every w in float32, and adding 1 again gives the file's
            # own value: below 1/2 it has no finer bits than w had, from 1/2 on Sterbenz' lemma or a common exponent.
            values = values - np.float32(1)
        return values.reshape(stop - start, -1)

    def _tensor(self, name: str) -> GgufTensor:
        return self._container.tensors[gguf_name(name)]

    def _check_kind(self) -> None:
        """Refuse files that are no whole Gemma 1 model, by what they say of themselves."""
        architecture = self._metadata.get("general.architecture")
        if architecture is None:
            raise CheckpointError(f"{self.path}: the metadata names no general.architecture; {DAMAGED}")
        if architecture != ARCHITECTURE:
            raise CheckpointError(f"{self.path}: a GGUF file of architecture {shown(architecture)}; {INSTEAD}")
        kind = self._metadata.get("general.type", "model")
        if kind != "model":
            raise CheckpointError(f"{self.path}: a GGUF file of type {shown(kind)}, not of a whole model; {INSTEAD}")
        parts, part = self._metadata.get("split.count", 1), self._metadata.get("split.no", 0)
        if isinstance(parts, int) and parts > 1:
            number = part + 1 if isinstance(part, int) else "?"
            raise CheckpointError(
                f"{self.path}: part {number} of a GGUF file split in {parts}; join them first: "
                "`llama-gguf-split --merge FIRST-PART WHOLE.gguf`"
            )

    def _config_values(self) -> dict[str, Any]:
        """Return the network as the keys of config.json."""
        unknown = [
            key
            for key in self._metadata
            if key.startswith(f"{ARCHITECTURE}.") and key.removeprefix(f"{ARCHITECTURE}.") not in JUDGED_KEYS
        ]
        if unknown:
            raise ConfigError(f"{self.path}: the metadata key {shown(unknown[0])} is not known of Gemma 1; {INSTEAD}")
        values: dict[str, Any] = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
        values |= {ours: self._integer(key) for key, ours in DIMENSION_KEYS.items()}
        heads = values["num_attention_heads"]
        values["num_key_value_heads"] = self._integer("attention.head_count_kv", heads)
        # Not hidden_size / heads, which is 192 in 7B: where no key says it, the rows of the queries do.
        query = self._container.tensors.get("blk.0.attn_q.weight")
        inferred = query.shape[0] // heads if query is not None and heads else None
        values["head_dim"] = self._integer("attention.key_length", inferred)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._integer(key, values["head_dim"]) != values["head_dim"]:
                raise ConfigError(f"{self.path}: gemma.{key} differs from the width of a head; {INSTEAD}")
        if self._metadata.get("gemma.rope.scaling.type", "none") != "none":
            raise ConfigError(f"{self.path}: gemma.rope.scaling.type changes the positions; {INSTEAD}")
        values["rms_norm_eps"] = self._number("attention.layer_norm_rms_epsilon", 1e-6)
        values["rope_theta"] = self._number("rope.freq_base", 10000.0)
        values["vocab_size"] = self._num_rows()
        values |= {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
        return {**values, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

    def _num_rows(self) -> int:
        embedding = self._container.tensors.get(gguf_name(EMBEDDING_NAME))
        if embedding is None:
            raise CheckpointError(f"{self.path}: tensor {gguf_name(EMBEDDING_NAME)} is missing; {DAMAGED}")
        return NUM_PIECES if embedding.shape[0] == PADDED_ROWS else embedding.shape[0]

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool):
            found = "missing" if value is None else f"{shown(str(value))}, not an integer"
            raise ConfigError(f"{self.path}: the metadata key gemma.{key} is {found}; {DAMAGED}")
        return value

    def _number(self, key: str, default: float) -> float:
        """Return a float32 of the file as the shortest decimal that it may stand for: 1e-6, not 9.99999997e-07."""
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{self.path}: the metadata key gemma.{key} is {shown(str(value))}; {DAMAGED}")
        return float(str(np.float32(value)))

    def _check_tensors(self) -> None:
        needed = {gguf_name(name): shape for name, shape in self.config.tensor_shapes().items()}
        found = self._container.tensors
        missing = [name for name in needed if name not in found]
        if missing:
            raise CheckpointError(f"{self.path}: tensor {_first_of(missing)} is missing; {DAMAGED}")
        head = gguf_name(HEAD_NAME)
        if head in found:
            needed[head] = needed[gguf_name(EMBEDDING_NAME)]
        spare = [name for name in found if name not in needed]
        if spare:
            raise CheckpointError(f"{self.path}: tensor {_first_of(spare)} is not part of Gemma 1; {INSTEAD}")
        for name, shape in needed.items():
            stored = found[name].shape
            is_padded = name in (gguf_name(EMBEDDING_NAME), head) and stored == (PADDED_ROWS, *shape[1:])
            if stored != shape and not (is_padded and shape[0] == NUM_PIECES):
                raise CheckpointError(
                    f"{self.path}: tensor {name} has shape {list(stored)}, the metadata needs {list(shape)}; {DAMAGED}"
                )

    def _make_notices(self) -> tuple[str, ...]:
        matrices = {tensor.type.name for tensor in self._container.tensors.values() if len(tensor.shape) > 1}
        coarse = sorted(matrices - set(EXACT_TYPES))
        notices = []
        if coarse:
            notices.append(
                f"{self.path}: its weights are already rounded ({', '.join(coarse)}); what is made of them has that "
                "error and its own: unquantized weights give a better model"
            )
        if self.has_separate_head:
            notices.append(f"{self.path}: output.weight differs from the embedding; it is used as the output layer")
        return tuple(notices)


def _decode(data: NDArray[np.uint8], kind: str, path: Path) -> NDArray[np.float32]:
    """Decode whole rows, exactly as the package `gguf` does."""
    if kind in EXACT_TYPES:
        return EXACT_TYPES[kind](data)
    dequantize, types = _dequantizer(path)
    values: NDArray[np.float32] = dequantize(data, types[kind])
    return values


def _dequantizer(path: Path) -> tuple[Callable[..., NDArray[np.float32]], Any]:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as cause:
        raise CheckpointError(
            f"{path}: holds quantized weights, which the package gguf decodes, and it is missing; run "
            "`pip install 'cg-local[gguf]'`, or use an unquantized file (F32, F16, BF16)"
        ) from cause
    return dequantize, GGMLQuantizationType


def _first_of(names: list[str]) -> str:
    return shown(names[0]) + (f" (the first of {len(names)})" if len(names) > 1 else "")
