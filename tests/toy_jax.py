"""Toy models in JAX, for the tests of its path; importing this skips them where JAX is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_models import MHA, MQA

pytest.importorskip("jax")

from cg_local.jax_backend.backend import compile_model, open_model
from cg_local.jax_backend.generate import left_padded
from cg_local.jax_backend.mesh import MeshShape
from cg_local.jax_backend.model import CompiledModel

# Eight heads, so that eight devices can share them.
EIGHT_HEADS = {
    "mqa": {**MQA, "num_attention_heads": 8, "head_dim": 32},
    "mha": {**MHA, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32},
}


def compiled(path: Path, mesh: str = "1x1", **options: Any) -> CompiledModel:
    """Open and compile a checkpoint or model folder; the keywords are `compile_model`'s."""
    return compile_model(open_model(path), mesh=MeshShape.parse(mesh), **options)


def logits_of(model: CompiledModel, *sequences: list[int]) -> list[NDArray[np.float32]]:
    """Return each sequence's logits, computed as one batch."""
    token_ids, starts = left_padded(sequences, len(sequences))
    states = model.states(model.weights, token_ids, starts)[-1]
    found = np.asarray(model.logits(model.weights, states))
    return [rows[start:] for rows, start in zip(found, starts, strict=True)]
