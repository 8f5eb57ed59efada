"""Making an importance pack: the statistics of every matrix's inputs while a model reads texts.

This file owns what is observed, and how much the output minds an error of each matrix. The texts are `corpora`'s, the
pass over the layers is `hidden_states`', the statistics are `importance`'s. Invariant: everything is computed with the
published weights in float32, but for the one matrix whose error is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint
from cg_local.config import ModelConfig
from cg_local.model_folder import EMBEDDING, matrix_shapes
from cg_local.quant.corpora import Corpus
from cg_local.quant.divergence import HeadLogits, compare
from cg_local.quant.encoder import guide_by
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.hidden_states import final_states
from cg_local.quant.importance import ImportancePack, InputStatistics, input_name
from cg_local.quant.rounded_rows import relative_error, rounded
from cg_local.quant.schemes import divisible_format

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]

PROBE = "c4g32"
"""The format whose error probes a matrix: large enough to stand out of the arithmetic's own noise."""


def importance_of(checkpoint: Checkpoint, corpus: Corpus, *, on_layer: OnStep | None = None) -> ImportancePack:
    """Compute the statistics of all inputs over a corpus.

    Args:
        checkpoint: the published weights.
        corpus: from `corpora.calibration_corpus`.
        on_layer: called with the layers done and in all.
    """
    statistics: dict[str, InputStatistics] = {}

    def observe(name: str, inputs: list[Floats]) -> None:
        if input_name(name) == name:
            statistics[name] = InputStatistics.of(inputs)

    sequences = [window.token_ids for window in corpus.windows]
    states = final_states(checkpoint, sequences, observe=observe, on_layer=on_layer)
    statistics[EMBEDDING] = InputStatistics.of(states)
    names = [path.name for path in checkpoint.source_files]
    document = {"corpus": corpus.document(), "sources": names}
    return ImportancePack(statistics, {}, fingerprint(checkpoint), document)


def sensitivities_of(
    checkpoint: Checkpoint, corpus: Corpus, pack: ImportancePack, *, on_matrix: OnStep | None = None
) -> dict[str, float]:
    """Measure how far the output moves for the error of each matrix.

    Each matrix in turn is rounded to PROBE while the others stay as published.

    Args:
        checkpoint: the published weights.
        corpus: texts to measure on; the whole model runs over them once for each matrix.
        pack: statistics of the inputs.
        on_matrix: called with the matrices done and in all.

    Returns:
        name -> mean KL divergence in nats over the relative output error, `rounded_rows.relative_error`; 0 for a matrix
        that PROBE holds without an error.
    """
    sequences = [window.token_ids for window in corpus.windows]
    true_ids = np.concatenate([np.array(ids[1:], np.int64) for ids in sequences])

    def logits(source: Checkpoint | _Probed) -> HeadLogits:
        states = np.concatenate([state[:-1] for state in final_states(source, sequences)])
        return HeadLogits(states, source, checkpoint.config.vocab_size)

    def divergence(source: _Probed) -> float:
        return float(compare(reference, logits(source), true_ids).kl.mean())

    reference, found = logits(checkpoint), {}
    shapes = matrix_shapes(checkpoint.config, has_separate_head=checkpoint.has_separate_head)
    for index, name in enumerate(shapes):
        x = checkpoint.tensor(name)
        y = rounded(divisible_format(PROBE, x.shape[1]), x, guide_by(pack, name, checkpoint))
        error = relative_error(x, y, pack.of(name))
        # Without an error there is nothing to look at; sums of a divergence near 0 may end a little below it.
        found[name] = max(0.0, divergence(_Probed(checkpoint, name, y)) / error) if error else 0.0
        if on_matrix is not None:
            on_matrix(index + 1, len(shapes))
    return found


@dataclass(frozen=True)
class _Probed:
    """A checkpoint of which one matrix has other values."""

    checkpoint: Checkpoint
    name: str
    values: Floats

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self.checkpoint.tensor_names

    def tensor(self, name: str) -> Floats:
        return self.values if name == self.name else self.checkpoint.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        return self.values[start:stop] if name == self.name else self.checkpoint.rows(name, start, stop)
