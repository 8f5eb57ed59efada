"""What each matrix's rounding does to its output: the squared error over the squared output, on the reference's inputs.

Owns this figure. With W the published matrix, dW what rounding changed, and H the sum of x x^T over the inputs x that
the float32 reference multiplies W with, it is tr(dW H dW^T) / tr(W H W^T); computed as sums over x of |dW x|^2 and
|W x|^2. Invariant: every model sees the same inputs, and one slab of a matrix is held beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cg_local.quant.corpus_windows import Window
from cg_local.quant.hidden_states import RowSource, final_states, head_name, slab_rows

Floats = NDArray[np.float32]
MAX_TOKENS = 2048
"""Of the windows whose inputs are used, from the corpus's start: an energy over so many places is known to 2 %."""


def tensor_errors(
    reference: RowSource, models: Sequence[RowSource], windows: Sequence[Window]
) -> list[dict[str, float]]:
    """Return the relative output error of every matrix, for each model.

    Args:
        reference: the published weights.
        models: dequantized.
        windows: texts; the first of them are used, up to MAX_TOKENS. The first token of each, <bos>, is left out: its
            states are so large that they would drown all others.
    """
    sequences, total = list[tuple[int, ...]](), 0
    for window in windows:
        if total and total + len(window.token_ids) > MAX_TOKENS:
            break
        sequences.append(window.token_ids)
        total += len(window.token_ids)
    errors: list[dict[str, float]] = [{} for _ in models]

    def observe(name: str, inputs: list[Floats]) -> None:
        x = np.concatenate([each[1:] for each in inputs])
        for model, found in zip(models, errors, strict=True):
            found[name] = relative_output_error(reference, model, name, x)

    states = final_states(reference, sequences, observe=observe)
    observe(head_name(reference), states)
    return errors


def relative_output_error(reference: RowSource, model: RowSource, name: str, x: Floats) -> float:
    """Return |dW x|^2 / |W x|^2, summed over inputs.

    Args:
        reference: has the matrix W, [outputs, inputs].
        model: has it rounded.
        name: of the matrix.
        x: float32 [num_tokens, inputs].
    """
    config = reference.config
    num_rows = {"model.embed_tokens.weight": config.vocab_size, "lm_head.weight": config.vocab_size}.get(name)
    num_rows = num_rows or config.tensor_shapes()[name][0]
    error, energy, step = 0.0, 0.0, slab_rows(x.shape[1])
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        rows = reference.rows(name, start, stop)
        energy += _energy(x, rows)
        error += _energy(x, model.rows(name, start, stop) - rows)
    return error / energy if energy else 0.0


def worst_tensors(errors: Mapping[str, float], count: int = 5) -> list[tuple[str, float]]:
    """Return the matrices with the largest errors, the largest first."""
    return sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:count]


def _energy(x: Floats, rows: Floats) -> float:
    # Few tokens at a time: a slab of the head has thousands of rows.
    step = max(1, (32 << 20) // (4 * len(rows)))
    return float(sum(np.square(x[i : i + step] @ rows.T, dtype=np.float64).sum() for i in range(0, len(x), step)))
