"""Writes a checkpoint as a model folder in the Hugging Face layout, with its model card.

    python -m cg_local.training.export RUN_DIR OUT_DIR --corpus DIR --tokenizer FILE

Owns names, shapes and dtypes of the published layout. The card's text is `card`'s work.
Invariant: transformers' GemmaForCausalLM loads what it writes and computes the same logits as `model.logits` on the
weights rounded to bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from cg_local.errors import TrainingError
from cg_local.training import checkpoint as checkpoints
from cg_local.training.card import model_card
from cg_local.training.model import Architecture
from cg_local.training.plots import read_log

LAYER_NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    "input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
}  # fmt: skip


@dataclass(frozen=True)
class TrainedRun:
    """The newest checkpoint of a run.

    Attributes:
        path: of the checkpoint.
        recipe: what the run was asked for.
        arrays: weights and optimizer state by name.
        log: entries up to the checkpoint's step.
    """

    path: Path
    recipe: dict[str, Any]
    arrays: Mapping[str, np.ndarray]
    log: list[dict[str, Any]]

    @classmethod
    def newest(cls, run: Path) -> TrainedRun:
        """Read it; the run may still be training.

        Raises:
            TrainingError: the run has no checkpoint.
        """
        path = checkpoints.latest(run)
        if path is None:
            raise TrainingError(f"{run}: no checkpoint yet. The first one is written soon after the start.")
        saved = checkpoints.load(path)
        recipe, step = saved.record["recipe"], int(str(saved.record["step"]))
        assert isinstance(recipe, dict)
        return cls(
            path, recipe, saved.arrays, [entry for entry in read_log(run / "log.jsonl") if entry["step"] <= step]
        )

    @property
    def architecture(self) -> Architecture:
        """The network's shape."""
        return Architecture(**self.recipe["model"])

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest rows that the run trained on."""
        return int(max(self.recipe["run"]["sequence_lengths"]))

    def params(self, kind: str = "params") -> dict[str, np.ndarray]:
        """The weights, or with "average" their mean over steps, by the names of `model`."""
        found = ((name.partition("/"), value) for name, value in self.arrays.items())
        return {name: value for (prefix, _, name), value in found if prefix == kind}


def published_name(name: str) -> str:
    """The Hugging Face name of a weight, for example "0.q" to "model.layers.0.self_attn.q_proj.weight"."""
    if name == "embedding":
        return "model.embed_tokens.weight"
    if name == "final_norm":
        return "model.norm.weight"
    layer, _, short = name.partition(".")
    return f"model.layers.{layer}.{LAYER_NAMES[short]}.weight"


def published_tensors(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights in the published layout: matrices [output_size, input_size], bfloat16, no lm_head since it is tied."""
    tensors = {}
    for name, value in params.items():
        is_transposed = value.ndim == 2 and name != "embedding"
        tensors[published_name(name)] = np.ascontiguousarray((value.T if is_transposed else value).astype(jnp.bfloat16))
    return tensors


def config(arch: Architecture, max_position_embeddings: int) -> dict[str, object]:
    """config.json with every field of a published CodeGemma config, and `hidden_activation` as in version 1.1."""
    return {
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": arch.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": arch.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": arch.intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "model_type": "gemma",
        "num_attention_heads": arch.num_heads,
        "num_hidden_layers": arch.num_layers,
        "num_key_value_heads": arch.num_kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": arch.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": arch.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": arch.vocab_size,
    }


GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<eos>",
    "legacy": None,
    "pad_token": "<pad>",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}


def write_model(
    out: Path,
    params: dict[str, np.ndarray],
    values: Mapping[str, object],
    tokenizer: Path,
    *,
    generation: Mapping[str, object] = GENERATION_CONFIG,
    tokenizing: Mapping[str, object] = TOKENIZER_CONFIG,
) -> None:
    """Write everything of a model folder but its card and its licence.

    Args:
        out: the folder; its files of these names are replaced.
        params: the weights.
        values: of `config`.
        tokenizer: SentencePiece model, copied.
        generation: generation_config.json.
        tokenizing: tokenizer_config.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_file(published_tensors(params), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
    write_json(out / "config.json", values)
    write_json(out / "generation_config.json", generation)
    write_json(out / "tokenizer_config.json", tokenizing)
    shutil.copyfile(tokenizer, out / "tokenizer.model")


def export(run: Path, out: Path, corpus: Path, tokenizer: Path) -> Path:
    """Write the newest checkpoint of a run as a model folder.

    Args:
        run: the run's folder; it may still be training.
        out: the model folder; its files of these names are replaced.
        corpus: folder of `prepare`, for the sources in the card.
        tokenizer: SentencePiece model, copied.

    Returns:
        The checkpoint that was exported.

    Raises:
        TrainingError: the run has no checkpoint.
    """
    trained = TrainedRun.newest(run)
    params = trained.params(better_weights(trained.log))
    write_model(out, params, config(trained.architecture, trained.sequence_length), tokenizer)
    num_params = sum(value.size for value in params.values())
    notes = run / "notes.json"
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {"name": out.resolve().name}
    sources = json.loads((corpus / "sources.json").read_text())
    (out / "README.md").write_text(
        model_card(trained.recipe, trained.log, sources, num_params=num_params, notes=known), encoding="utf-8"
    )
    return trained.path


def better_weights(log: list[dict[str, Any]]) -> str:
    """ "params" or "average": whichever had the lower loss when held-out files were last looked at.

    On the plateau of the learning rate the average is better; after a full decay there is little between them.
    """
    checks = [entry for entry in log if "average_loss" in entry]
    return "average" if checks and checks[-1]["average_loss"] < checks[-1]["validation_loss"] else "params"


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON as Hugging Face does: two spaces, a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line entry; see the module's head."""
    parser = argparse.ArgumentParser(description="Export the newest checkpoint of a run.")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    path = export(options.run, options.out, options.corpus, options.tokenizer)
    size = sum(file.stat().st_size for file in options.out.iterdir() if file.is_file())
    print(f"{path} exported to {options.out}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
