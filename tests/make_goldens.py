"""Compute the logits that transformers' GemmaForCausalLM gives for small random models, and store them.

    python tests/make_goldens.py        (needs the extra `parity`: torch and transformers)

This file owns the cases and the form of goldens/reference.npz; tests/test_reference.py compares with it. Invariant:
weights and token ids come from toy_models.normal_like, which gives the same numbers everywhere, so only results are
stored: float32, eager attention, at a few positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from toy_models import MHA, MQA, normal_like, write_toy_checkpoint

GOLDEN_PATH = Path(__file__).parent / "goldens" / "reference.npz"
# Both sides of the edge between the reference's blocks of queries, the ends, and some positions between.
POSITIONS = (0, 1, 17, 100, 254, 255, 256, 257, 298, 299)
NUM_TOKENS = 300
NUM_CHANNELS = 24


@dataclass(frozen=True)
class GoldenCase:
    """A random model: its config.json, how its weights are stored, and their seed."""

    values: Mapping[str, object]
    dtype: str
    seed: int

    @property
    def token_ids(self) -> list[int]:
        """NUM_TOKENS ids, <bos> first."""
        drawn = np.abs(normal_like(self.seed, "token_ids", (NUM_TOKENS,)) * 1e6).astype(np.int64)
        vocab_size = self.values["vocab_size"]
        assert isinstance(vocab_size, int)
        return [2, *(drawn[1:] % vocab_size).tolist()]


CASES: Mapping[str, GoldenCase] = {
    "mqa": GoldenCase({**MQA, "num_hidden_layers": 4}, "BF16", 11),
    "mha_wider_than_hidden": GoldenCase({**MHA, "num_hidden_layers": 4}, "F16", 12),
    "grouped_queries": GoldenCase({**MQA, "num_key_value_heads": 2}, "F32", 13),
    "head_dim_256": GoldenCase({**MQA, "head_dim": 256, "num_attention_heads": 2}, "BF16", 14),
    "gelu_and_null": GoldenCase({**MHA, "hidden_act": "gelu", "hidden_activation": None}, "BF16", 15),
    "other_constants": GoldenCase({**MQA, "rope_theta": 500.0, "rms_norm_eps": 0.01}, "BF16", 16),
}


@dataclass(frozen=True)
class Expected:
    """What transformers gives: float32 logits [num_tokens, vocab_size], residual streams before each layer."""

    logits: NDArray[np.float32]
    residual_streams: list[NDArray[np.float32]]


def run_transformers(folder: Path, token_ids: list[int]) -> Expected:
    """Run GemmaForCausalLM in float32 with eager attention on the CPU."""
    import torch
    import transformers

    untyped: Any = transformers
    untyped.utils.logging.set_verbosity_error()
    untyped.utils.logging.disable_progress_bar()
    model = untyped.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        output = model(torch.tensor([token_ids]), output_hidden_states=True, use_cache=False)
    # The last of the hidden states has passed the final norm; the others are the residual stream before each layer.
    return Expected(output.logits[0].numpy(), [state[0].numpy() for state in output.hidden_states[:-1]])


def main() -> None:
    """Write the golden file."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_toy_checkpoint(Path(folder) / name, case.values, seed=case.seed, dtype=case.dtype)
            expected = run_transformers(Path(folder) / name, case.token_ids)
        positions = list(POSITIONS)
        arrays[f"{name}.logits"] = expected.logits[positions]
        arrays[f"{name}.logits_range"] = np.array([expected.logits.min(), expected.logits.max()])
        arrays[f"{name}.residual_streams"] = np.stack(expected.residual_streams)[:, positions, :NUM_CHANNELS]
    GOLDEN_PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN_PATH, **arrays)  # type: ignore[arg-type]
    print(f"{GOLDEN_PATH}: {GOLDEN_PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
