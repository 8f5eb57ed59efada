"""Engines over toy models, their dequantized weights for the reference, and measures of distance between logits.

This file owns what the tests of model, engine and generation share. It asserts nothing. Invariant: a prompt is the same
for the same length and seed, and a shorter one is the beginning of a longer one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.config import EngineConfig, ModelConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
from cg_local.packing import GROUP, dequantize
from cg_local.sequence import Sequence

Floats = NDArray[np.float32]


def engine_of(folder: Path, *, vocab_size: int | None = None, activations: str = "int8", **config: Any) -> Engine:
    """Open a model folder in a new engine; the other keywords are EngineConfig's."""
    model = Model(open_model_folder(folder), activations=activations)
    return Engine(model, EngineConfig(**config), vocab_size=vocab_size)


def toy_prompt(num_tokens: int, seed: int = 0, vocab_size: int = 768) -> list[int]:
    """BOS and random ids."""
    return [2, *np.random.default_rng(seed).integers(0, vocab_size, 999).tolist()][:num_tokens]


def generate(engine: Engine, prompt: list[int], stop_ids: tuple[int, ...] = (), **params: Any) -> Sequence:
    """Run one request to its end; the keywords are SamplingParams'."""
    sequence = engine.add(prompt, SamplingParams(**params), stop_ids)
    engine.run()
    return sequence


def result_of(sequence: Sequence) -> tuple[list[int], list[float], str | None]:
    """All that a caller sees of a finished sequence."""
    return sequence.completion_ids, sequence.logprobs, sequence.stop_reason


class DequantizedFolder:
    """A model folder as the reference's source of tensors."""

    def __init__(self, path: Path) -> None:
        folder = open_model_folder(path)
        self.config: ModelConfig = folder.config
        # Gains lie within a factor 2 of 1, so subtracting and adding 1 are exact.
        self._tensors = {name: gain - 1 for name, gain in folder.gains.items()}
        self._tensors |= {name: dequantize(matrix) for name, matrix in folder.matrices.items()}
        self.tensor_names = tuple(self._tensors)

    def tensor(self, name: str) -> Floats:
        return self._tensors[name]


def linear_of_rounded_activations(x: Floats, weight: Floats) -> Floats:
    """`reference.linear` of inputs rounded to int8 by groups of 32 columns, as the integer kernels take them."""
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    codes = np.rint(groups * np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0))
    return (codes * (largest / np.float32(127))).reshape(x.shape) @ weight.T


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(expected: Floats, found: Floats) -> float:
    """Mean Kullback-Leibler divergence over the positions, in nats."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def relative_error(expected: Floats, found: Floats) -> float:
    """Root mean square of the difference over that of the expected values."""
    difference = found.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


def pages_in_use(engine: Engine) -> int:
    return engine.block_manager.num_pages - engine.block_manager.num_free_pages
