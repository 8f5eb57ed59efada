"""Writes small random checkpoints in the Hugging Face layout: what published weights look like, in a few kilobytes.

This file owns toy configs, their seeded weights and the files around them. It checks nothing. Invariant: the weights
depend on the seed, the tensor's name and its shape alone, on every platform and with every version of NumPy, because
they are integer sums of PCG64's raw words, whose stream NumPy guarantees (unlike that of Generator's methods).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.packing import bfloat16_from_float32, float32_from_bfloat16
from cg_local.safetensors_file import header_bytes

Weights = dict[str, NDArray[np.float32]]

MQA: Mapping[str, object] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "model_type": "gemma",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "use_cache": True,
    "vocab_size": 768,
}

# As in 7B, the heads together are wider than the residual stream: 6 * 64 = 384 against 256.
MHA: Mapping[str, object] = {**MQA, "num_attention_heads": 6, "num_key_value_heads": 6}


def normal_like(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw nearly normal values of mean 0 and deviation 1: sums of four uniform 16-bit integers.

    Args:
        seed: of the model.
        name: of the tensor; its CRC-32 is the second word of the seed, so that no two tensors share a stream.
        shape: of the result.
    """
    count = math.prod(shape)
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    sums: NDArray[np.int64] = words.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64) - 2 * 0xFFFF
    # A uniform 16-bit integer has deviation 65536 / sqrt(12), a sum of four twice that.
    return (sums * (math.sqrt(12) / (2 * 65536))).astype(np.float32).reshape(shape)


def toy_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Draw every tensor of a model, scaled by fan-in so that activations stay of order 1 through all layers."""
    weights: Weights = {}
    for name, shape in config.tensor_shapes().items():
        deviation = 0.1 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
        weights[name] = normal_like(seed, name, shape) * np.float32(deviation)
    return weights


def stored_values(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Return the float32 values that remain after storing as "BF16", "F16" or "F32"."""
    if dtype == "BF16":
        return float32_from_bfloat16(bfloat16_from_float32(values)).reshape(values.shape)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def write_toy_checkpoint(
    folder: Path,
    values: Mapping[str, object] = MQA,
    *,
    seed: int = 0,
    dtype: str = "BF16",
    num_shards: int = 1,
    lm_head: str | None = None,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    has_tokenizer: bool = False,
) -> Path:
    """Write config.json, weights and (if asked) tokenizer.model into a new folder.

    Args:
        folder: created.
        values: config.json's object; MQA, MHA, or one of these with changes.
        seed: of the weights.
        dtype: "BF16", "F16" or "F32".
        num_shards: 1 writes model.safetensors; more write shards and their index.
        lm_head: None, "equal" (a copy of the embedding) or "different".
        weights: exactly the tensors to store, instead of random ones.
        has_tokenizer: write a tokenizer of CodeGemma's layout with vocab_size pieces.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    folder.joinpath("config.json").write_text(json.dumps(values, indent=2))
    tensors = dict(toy_weights(ModelConfig.from_dict(values, "toy"), seed) if weights is None else weights)
    if lm_head is not None:
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embedding if lm_head == "equal" else np.roll(embedding, 1, axis=0)
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
    else:
        _write_shards(folder, tensors, dtype, num_shards)
    if has_tokenizer:
        from toy_tokenizer import write_toy_tokenizer

        vocab_size = values["vocab_size"]
        assert isinstance(vocab_size, int)
        write_toy_tokenizer(folder / "tokenizer.model", vocab_size=vocab_size)
    return folder


def write_toy_texts(folder: Path) -> Path:
    """Write forty small files in Python into a new folder, to calibrate toys on; returns the folder."""
    folder.mkdir()
    for number in range(40):
        body = f"    value = {number} * width\n    print(value, height)\n    return value\n" * 4
        (folder / f"file_{number}.py").write_text(f"def area_{number}(width, height):\n{body}")
    return folder


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    dtype: str = "F32",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write float32 tensors as one safetensors file of the given dtype; the metadata is transformers' by default."""
    entries = [(name, dtype, values.shape) for name, values in tensors.items()]
    header, _ = header_bytes(entries, {"format": "pt"} if metadata is None else metadata)
    path.write_bytes(header + b"".join(encode(values, dtype) for values in tensors.values()))
    return path


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return the little-endian bytes of values stored as dtype."""
    if dtype == "BF16":
        return bfloat16_from_float32(values).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def _write_shards(folder: Path, tensors: Weights, dtype: str, num_shards: int) -> None:
    """Deal the tensors out in order, as evenly as their number allows, and write the index."""
    names = list(tensors)
    per_shard = -(-len(names) // num_shards)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        members = names[number * per_shard : (number + 1) * per_shard]
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        write_safetensors(folder / shard, {name: tensors[name] for name in members}, dtype)
        weight_map.update(dict.fromkeys(members, shard))
    total = sum(len(encode(values, dtype)) for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    folder.joinpath("model.safetensors.index.json").write_text(json.dumps(index, indent=2))
