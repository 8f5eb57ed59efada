#!/usr/bin/env python3
"""Write a checkpoint with the exact shape and files of google/codegemma-2b or -7b, and random weights.

This file owns the published configs and the random weights, for measurements that need the size of the real thing but
not its answers. Invariant: the weights depend on the seed and on each tensor's name and shape alone, so a checkpoint of
fewer layers holds the first layers of the full one; memory stays under 500 MB for any size.

    python benchmarks/make_random_checkpoint.py --model 2b random-2b
    python benchmarks/make_random_checkpoint.py --model 2b --layers 4 random-2b-4-layers

Needs the extra `dev` (protobuf, for the synthetic tokenizer).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from synthetic_tokenizer import synthetic_tokenizer

from cg_local.config import ModelConfig
from cg_local.errors import CgLocalError
from cg_local.packing import bfloat16_from_float32
from cg_local.safetensors_file import header_bytes

SHARD_BYTES = 5_000_000_000  # transformers' limit when CodeGemma was published
SLAB_VALUES = 1 << 20

# The keys of google/codegemma-2b's and -7b's config.json, "gelu" and null of 2B included (both mean tanh-GELU).
COMMON: dict[str, object] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "use_cache": True,
    "vocab_size": 256000,
}
CONFIGS: dict[str, dict[str, object]] = {
    "2b": {
        **COMMON,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
    },
    "7b": {
        **COMMON,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
    },
}

# "peaked" weights: deviation of a matrix's values times sqrt(inputs): 1 keeps the deviation from input to output. The
# embedding is small and the two writers into the residual stream large, so that a token does not simply predict itself;
# queries and keys are large, so that attention is not flat. In 2B the deviations come to 0.007 to 0.044. Such a network
# multiplies small errors: the worst case for a quantized one.
DEVIATIONS = {"embed_tokens": 0.3, "q_proj": 1.5, "k_proj": 1.5, "o_proj": 2.0, "down_proj": 2.0}
# The final norm's gain gives the logits a deviation of 0.3 * 10 = 3: a peaked distribution over 256,000 tokens.
FINAL_GAIN = 10.0
NORM_DEVIATION = 0.3
# "initial" weights: as a network is before training. Source: initializer_range of the published config.json, and
# transformers, models/gemma/modeling_gemma.py, which starts norm weights at 0.
INITIAL_DEVIATION = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", type=Path, metavar="DEST", help="folder to create")
    parser.add_argument("--model", choices=sorted(CONFIGS), default="2b", help="whose shape (default: 2b)")
    parser.add_argument("--layers", type=int, help="at most so many layers of the same shape")
    parser.add_argument("--weights", choices=("peaked", "initial"), default="peaked", help="distribution of the values")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    options = parser.parse_args(arguments)
    values = dict(CONFIGS[options.model])
    if options.layers is not None:
        values["num_hidden_layers"] = min(options.layers, ModelConfig.from_dict(values, options.model).num_layers)
    folder: Path = options.destination
    try:
        config = ModelConfig.from_dict(values, f"--layers {options.layers}")
        write_checkpoint(folder, values, options.seed, options.weights)
    except (CgLocalError, OSError) as error:
        print(f"make_random_checkpoint: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {config.num_parameters:,} parameters", file=sys.stderr)
    return 0


def write_checkpoint(folder: Path, values: dict[str, object], seed: int, distribution: str = "peaked") -> None:
    """Write a folder in the Hugging Face layout; it has its final name only when it is complete."""
    config = ModelConfig.from_dict(values, "CONFIGS")
    needed_bytes = 2 * config.num_parameters + 50_000_000
    free_bytes = shutil.disk_usage(folder.absolute().parent).free
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder or remove it")
    if free_bytes < needed_bytes:
        raise OSError(
            f"{folder} needs {needed_bytes:,} bytes, the disk has {free_bytes:,} free; free some or go elsewhere"
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    partial.joinpath("config.json").write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n")
    generation = {"_from_model_config": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    partial.joinpath("generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    partial.joinpath("tokenizer.model").write_bytes(synthetic_tokenizer(config.vocab_size))
    write_shards(partial, config, seed, distribution)
    os.replace(partial, folder)


def write_shards(folder: Path, config: ModelConfig, seed: int, distribution: str = "peaked") -> None:
    """Write model.safetensors, or shards of at most SHARD_BYTES and their index."""
    shards = list(plan_shards(config.tensor_shapes()))
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, _ = header_bytes([(tensor, "BF16", shape) for tensor, shape in shapes.items()], {"format": "pt"})
        start_seconds = time.monotonic()
        with (folder / name).open("wb") as file:
            file.write(header)
            for tensor, shape in shapes.items():
                for slab in random_slabs(seed, tensor, shape, distribution):
                    file.write(bfloat16_from_float32(slab).astype("<u2", copy=False).tobytes())
        size = (folder / name).stat().st_size
        print(f"{name}: {size:,} bytes in {time.monotonic() - start_seconds:.0f} s", file=sys.stderr)
        weight_map.update(dict.fromkeys(shapes, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": 2 * config.num_parameters}, "weight_map": dict(sorted(weight_map.items()))}
        folder.joinpath("model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def plan_shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the tensors of each shard: in order, as many as fit."""
    shard: dict[str, tuple[int, ...]] = {}
    shard_bytes = 0
    for name, shape in shapes.items():
        num_bytes = 2 * math.prod(shape)
        if shard and shard_bytes + num_bytes > SHARD_BYTES:
            yield shard
            shard, shard_bytes = {}, 0
        shard[name] = shape
        shard_bytes += num_bytes
    yield shard


def moments(name: str, shape: tuple[int, ...], distribution: str) -> tuple[float, float]:
    """Return mean and deviation of a tensor's values, "peaked" or "initial"."""
    if distribution == "initial":
        return 0.0, 0.0 if len(shape) == 1 else INITIAL_DEVIATION
    if len(shape) == 1:
        return (FINAL_GAIN - 1 if name == "model.norm.weight" else 0.0), NORM_DEVIATION
    return 0.0, DEVIATIONS.get(name.split(".")[-2], 1.0) / math.sqrt(shape[-1])


def random_slabs(
    seed: int, name: str, shape: tuple[int, ...], distribution: str = "peaked"
) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's values in order, at most SLAB_VALUES at a time.

    A value is a scaled sum of four uniform 16-bit integers, which is nearly normal. It comes from PCG64's raw words,
    whose stream NumPy guarantees for all versions, unlike that of Generator.normal.
    """
    mean, deviation = moments(name, shape, distribution)
    source = np.random.PCG64([seed, zlib.crc32(name.encode())])
    # One such integer has deviation 65536 / sqrt(12), a sum of four twice that.
    scale = np.float32(deviation * math.sqrt(12) / (2 * 65536))
    odd_halves = np.uint64(0x0000FFFF0000FFFF)
    count = math.prod(shape)
    for start in range(0, count, SLAB_VALUES):
        words = source.random_raw(min(SLAB_VALUES, count - start))
        pairs = (words & odd_halves) + (words >> np.uint64(16) & odd_halves)
        sums = ((pairs + (pairs >> np.uint64(32))) & np.uint64(0xFFFFFFFF)).astype(np.int32) - 2 * 0xFFFF
        yield sums.astype(np.float32) * scale + np.float32(mean)


if __name__ == "__main__":
    sys.exit(main())
