"""Writes small GGUF files of Gemma by hand, as converters other than ours lay them out.

This file owns toy files and their deliberate oddities; it checks nothing and uses nothing of our own export. Invariant:
the weights of a file are those of `toy_models` for the same config, or random blocks of the asked type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2
from toy_models import MQA, Weights, toy_weights
from toy_tokenizer import toy_tokenizer_bytes

from cg_local.config import ModelConfig

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Bytes of a block that are float16 scales. Source: ggml-common.h.
SCALE_BYTES = {
    "Q4_0": (0, 2), "Q4_1": (0, 4), "Q5_0": (0, 2), "Q5_1": (0, 4), "Q8_0": (0, 2), "Q2_K": (80, 84),
    "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210), "IQ4_NL": (0, 2), "IQ4_XS": (0, 2),
}  # fmt: skip


def llama_name(name: str) -> str:
    """Return the GGUF name of a Hugging Face name, spelled out anew."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, middle = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[middle]}.weight"


def random_blocks(kind: str, shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """Return random bytes of a block type [rows, bytes of a row], every scale finite and every other bit free."""
    import gguf

    num_values, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(seed).integers(0, 256, (shape[0], shape[1] // num_values, num_bytes), np.uint8)
    start, stop = SCALE_BYTES[kind]
    blocks[:, :, start + 1 : stop : 2] &= 0xBF  # the highest bit of the exponent: below 2, so neither infinite nor NaN
    return blocks.reshape(shape[0], -1)


def metadata_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every converter says of a network."""
    return {
        "gemma.context_length": values["max_position_embeddings"],
        "gemma.embedding_length": values["hidden_size"],
        "gemma.block_count": values["num_hidden_layers"],
        "gemma.feed_forward_length": values["intermediate_size"],
        "gemma.attention.head_count": values["num_attention_heads"],
        "gemma.attention.head_count_kv": values["num_key_value_heads"],
        "gemma.attention.key_length": values["head_dim"],
        "gemma.attention.value_length": values["head_dim"],
        "gemma.attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
    }


def vocabulary(num_rows: int, *, is_old: bool, model: bytes | None = None) -> dict[str, Any]:
    """Return the tokenizer's metadata: of a converter of spring 2024, or of a later one.

    The old one gives reserved and whitespace pieces the type NORMAL and keeps U+2581 in them; the later one makes what
    looks special CONTROL and the rest USER_DEFINED, with spaces.
    """
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model or toy_tokenizer_bytes()).pieces
    tokens, kinds = [piece.piece for piece in pieces], [int(piece.type) for piece in pieces]
    for token_id, kind in enumerate(kinds):
        if kind == 4:
            looks_special = tokens[token_id].startswith(("<|", "<unused"))
            kinds[token_id] = 1 if is_old else 3 if looks_special else 4
            tokens[token_id] = tokens[token_id] if is_old else tokens[token_id].replace("\u2581", " ")
    missing = num_rows - len(tokens)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{number}]" for number in range(missing)],
        "tokenizer.ggml.scores": [piece.score for piece in pieces] + [-1000.0] * missing,
        "tokenizer.ggml.token_type": kinds + [5] * missing,
        **({} if is_old else {"tokenizer.ggml.add_space_prefix": False}),
    }


def write_gguf(
    path: Path,
    values: Mapping[str, Any] = MQA,
    *,
    kind: str = "F32",
    architecture: str = "gemma",
    metadata: Mapping[str, Any] | None = None,
    left_out: tuple[str, ...] = (),
    padding_rows: int = 0,
    is_old: bool = False,
) -> Weights:
    """Write a GGUF file of toy weights.

    Args:
        path: of the file.
        values: config.json of the network.
        kind: type of the matrices: "F32", "F16", or a block type, whose blocks are then random.
        architecture: what the file says it is.
        metadata: further keys, or other values.
        left_out: keys and tensors, by GGUF name, to leave out.
        padding_rows: rows of the embedding beyond the config's.
        is_old: the vocabulary is laid out as by a converter of spring 2024.

    Returns:
        The weights as the writer got them, by Hugging Face name, norms as offsets from 1; blocks as uint8.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    num_rows = int(values["vocab_size"]) + padding_rows
    entries = {**metadata_of(values), **vocabulary(num_rows, is_old=is_old), **(metadata or {})}
    for key, value in entries.items():
        if key not in left_out:
            add_entry(writer, key, value)
    weights: dict[str, NDArray[Any]] = dict(
        toy_weights(ModelConfig.from_dict({**values, "vocab_size": num_rows}, "toy"))
    )
    for number, (name, stored) in enumerate(weights.items()):
        if llama_name(name) in left_out:
            continue
        if stored.ndim == 1:
            writer.add_tensor(llama_name(name), stored + np.float32(1))
        elif kind in SCALE_BYTES:
            weights[name] = random_blocks(kind, stored.shape, number)
            writer.add_tensor(llama_name(name), weights[name], raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(llama_name(name), stored.astype({"F32": np.float32, "F16": np.float16}[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def add_entry(writer: Any, key: str, value: Any) -> None:
    """Add metadata in the types that converters use."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
