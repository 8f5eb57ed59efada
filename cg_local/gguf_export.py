"""Published weights as one GGUF file, as llama.cpp and its relatives read it.

This file owns the names, the metadata and the vocabulary of Gemma in GGUF; the container itself is written by the
package `gguf`. It does not quantize. Invariant: every weight is stored with the value that it has in the checkpoint
(norm gains as 1 + w), slab by slab, so that memory stays small; the file has its name only when it is complete.

Source of names and conventions: ggml-org/llama.cpp, convert_hf_to_gguf.py (GemmaModel: norms + 1, no permutation of q
and k) and gguf-py/gguf/constants.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint
from cg_local.checkpoint.gguf_names import gguf_name
from cg_local.checkpoint.published import EMBEDDING_NAME
from cg_local.checkpoint.sentencepiece_model import (
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    sentencepiece_pieces,
)
from cg_local.errors import ExportError
from cg_local.packing import bfloat16_from_float32
from cg_local.tokenizer import FIM_IDS, NUM_CONTROL_IDS, SPACE, Tokenizer

# Key of the JSON object that says which files the weights came from: name -> SHA-256.
SOURCES_KEY = "cg_local.sources"
SLAB_BYTES = 16 << 20  # of float32
READ_BYTES = 16 << 20

Progress = Callable[[int, int, str], None]


def export_gguf(
    checkpoint: Checkpoint, destination: Path, *, is_widened: bool = False, on_progress: Progress | None = None
) -> None:
    """Write a checkpoint as GGUF, its matrices as they are stored (bf16, f16 or f32), its norms as float32.

    Args:
        checkpoint: opened published weights, with a tokenizer.
        destination: the file to write; replaced when it exists.
        is_widened: write the matrices as float32 too, for comparisons without rounded activations.
        on_progress: called with bytes done, bytes in all and tensor name.

    Raises:
        ExportError: the package `gguf` is missing, the checkpoint has no tokenizer, or the file cannot be written.
        CheckpointError: weights that cannot be read.
        TokenizerError: tokenizer.model is not laid out as CodeGemma's.
    """
    tokenizer = checkpoint.tokenizer_bytes()
    if tokenizer is None:
        raise ExportError(f"{checkpoint.path}: no tokenizer.model, which a GGUF file holds too; add the published one")
    gguf = _gguf()
    partial = destination.with_name(f".{destination.name}.partial")
    writer = gguf.GGUFWriter(partial, "gemma")
    try:
        _add_metadata(writer, checkpoint, is_widened)
        _add_vocabulary(writer, tokenizer, str(checkpoint.path), checkpoint.config.vocab_size)
        kinds = {name: _stored_kind(checkpoint, name, is_widened) for name in checkpoint.tensor_names}
        for name, kind in kinds.items():
            shape, dtype = checkpoint.shape(name), np.dtype(np.float32 if kind == "F32" else np.float16)
            num_bytes = dtype.itemsize * int(np.prod(shape))
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(gguf_name(name), shape, dtype, num_bytes, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_weights(writer, checkpoint, kinds, on_progress)
        writer.close()
        partial.replace(destination)
    except OSError as cause:
        raise ExportError(f"{destination}: cannot be written ({cause.strerror}); make room or go elsewhere") from cause
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def source_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint by its name; reads all of them."""
    digests = {}
    for path in checkpoint.source_files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
        digests[path.name] = digest.hexdigest()
    return digests


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as cause:
        raise ExportError(
            "the package gguf, which writes GGUF files, is missing; run `pip install 'cg-local[gguf]'`"
        ) from cause
    return gguf


def _stored_kind(checkpoint: Checkpoint, name: str, is_widened: bool) -> str:
    is_gain = len(checkpoint.shape(name)) == 1
    if is_gain or is_widened:
        return "F32"
    kind = checkpoint.dtype(name)
    return kind if kind in ("BF16", "F16") else "F32"  # blocks of a GGUF source are not written again


def _add_metadata(writer: Any, checkpoint: Checkpoint, is_widened: bool) -> None:
    config = checkpoint.config
    writer.add_type("model")
    writer.add_name(checkpoint.path.resolve().name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if checkpoint.is_free_of_gemma_terms:
        writer.add_license("apache-2.0")
    else:
        writer.add_license("gemma")
    if checkpoint.chat_template is not None:
        writer.add_chat_template(checkpoint.chat_template)
    # llama.cpp's numbers of these file types. Source: gguf-py/gguf/constants.py, LlamaFileType.
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[_stored_kind(checkpoint, EMBEDDING_NAME, is_widened)])
    writer.add_string(SOURCES_KEY, json.dumps(source_digests(checkpoint), sort_keys=True))


def _add_vocabulary(writer: Any, model: bytes, where: str, num_rows: int) -> None:
    """Add the pieces; rows of the embedding beyond them become unused tokens, as in llama.cpp's own conversion."""
    Tokenizer.from_bytes(model, where)  # refuses other layouts
    pieces = [_as_token(token_id, piece) for token_id, piece in enumerate(sentencepiece_pieces(model))]
    pieces += [Piece(f"[PAD{token_id}]".encode(), -1000.0, UNUSED) for token_id in range(len(pieces), num_rows)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_bos_token_id(Tokenizer.bos_id)
    writer.add_eos_token_id(Tokenizer.eos_id)
    writer.add_unk_token_id(Tokenizer.unk_id)
    writer.add_pad_token_id(Tokenizer.pad_id)
    writer.add_eot_token_id(Tokenizer.end_of_turn_id)
    writer.add_add_bos_token(True)
    # llama.cpp's default is True and would put a space before every text.
    writer.add_add_space_prefix(False)
    kinds = {"prefix": "pre", "middle": "mid", "suffix": "suf", "separator": "sep"}
    for name, token_id in FIM_IDS.items():
        kind = kinds[name.strip("<|>").split("_")[1]]
        writer.add_uint32(f"tokenizer.ggml.fim_{kind}_token_id", token_id)


def _as_token(token_id: int, piece: Piece) -> Piece:
    if token_id < NUM_CONTROL_IDS and piece.kind != UNKNOWN:
        return Piece(piece.text, piece.score, CONTROL)
    if piece.kind == USER_DEFINED:  # llama.cpp looks these up in the text itself, where a space is a space
        return Piece(piece.text.replace(SPACE.encode(), b" "), piece.score, piece.kind)
    return piece


def _write_weights(writer: Any, checkpoint: Checkpoint, kinds: dict[str, str], on_progress: Progress | None) -> None:
    """Write the tensors in the order of their descriptions, each at a multiple of the file's alignment."""
    file = writer.fout[0]
    sizes = {name: int(np.prod(checkpoint.shape(name))) * (4 if kind == "F32" else 2) for name, kind in kinds.items()}
    total, done = sum(sizes.values()), 0
    writer.write_padding(file, file.tell())
    for name, kind in kinds.items():
        for slab in _slabs(checkpoint, name):
            _encoded(slab, kind).tofile(file)
        writer.write_padding(file, sizes[name])
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total, name)


def _slabs(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.float32]]:
    num_rows, *rest = checkpoint.shape(name)
    if not rest:
        # 1 + w, as everything that computes Gemma from GGUF expects it.
        yield checkpoint.rows(name, 0, num_rows) + np.float32(1)
        return
    step = max(1, SLAB_BYTES // (4 * int(np.prod(rest))))
    for start in range(0, num_rows, step):
        yield checkpoint.rows(name, start, min(start + step, num_rows))


def _encoded(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    if kind == "BF16":
        return bfloat16_from_float32(values).astype("<u2", copy=False)
    return values.astype("<f2" if kind == "F16" else "<f4", copy=False)
