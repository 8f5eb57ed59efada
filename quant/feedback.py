"""Rounding with error feedback, in Numba: columns still to be rounded make up for the errors of those before them.

This file owns which codes stand for a row when its scales are settled and the inputs of the layer are correlated: it
walks the columns in a given order, rounds each to the nearest value of the grid, and moves the later columns so that
the expected squared error of the row's output, e H e for the error e and the mean product H of the inputs, grows least.
It chooses no scales (`search`) and collects no statistics. Invariant: a row's codes depend on that row, its scales and
the statistics only, and every sum has a fixed order.

H is either known whole, through the Cholesky factor of its inverse (`DenseFeedback`), or as a diagonal and a few
directions, H = diag(d) + V V' (`LowRankFeedback`), which costs only so many multiplications a weight as there are
directions.

Sources: Frantar et al., GPTQ, arXiv 2210.17323, algorithm 1 (whole H, order of falling diagonal, damping); the form for
a diagonal and directions follows from it by the Sherman-Morrison formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.kernels.cache_folder import caching_for
from cg_local.quant.work_plan import COMPILED_IN

with caching_for(Path(__file__).parent, *COMPILED_IN):
    from cg_local.quant import feedback_kernels, revision_kernels
    from cg_local.quant.lanes import PANEL
from cg_local.quant.fixed_order import in_order, threads_within

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
# Share of the mean of H's diagonal that is added to the diagonal. Source: Frantar et al., section 3.3, step 3.
DAMPING = 0.01
FACTOR_COPIES = 8  # so many times a block is held while its factor is computed
INVERTED_WHOLE = 64  # columns of a triangular matrix below which cutting it costs more than it saves


@dataclass(frozen=True)
class LowRankFeedback:
    """Feedback for H = diag(d) + V V'.

    Attributes:
        order: int64 [columns], in which columns are rounded: falling diagonal of H.
        directions: float32 [columns, rank], row j is V[j] / d[j].
        steps: float32 [columns, rank], what a unit of column j's error adds to the error in terms of the directions.
    """

    order: NDArray[np.int64]
    directions: Floats
    steps: Floats

    @classmethod
    def of(cls, diagonal: Doubles, directions: Doubles) -> LowRankFeedback:
        """Prepare the feedback.

        Args:
            diagonal: float64 [columns], d, at least 0.
            directions: float64 [columns, rank], V.
        """
        whole = diagonal + (directions * directions).sum(axis=1)
        damped = diagonal + (DAMPING * whole.mean() or 1.0)
        order = np.argsort(-whole, kind="stable")
        steps = np.empty_like(directions)
        feedback_kernels.low_rank_steps(damped, directions, order, steps)
        scaled = directions / damped[:, None]
        return cls(order, scaled.astype(np.float32), steps.astype(np.float32))

    def round(self, x: Floats, scales: Floats, values: Floats, codes: NDArray[np.int8]) -> None:
        """Round rows; arguments as in `DenseFeedback.round`."""
        feedback_kernels.round_low_rank(x, scales, values, self.order, self.directions, self.steps, codes)


@dataclass(frozen=True)
class DenseFeedback:
    """Feedback for a known H, or for the blocks on its diagonal where it is large.

    Attributes:
        order: int64 [columns]: within a block, falling diagonal of H.
        factors: of each block of columns, float32 [n / PANEL, n, PANEL]: element [p, i, j] is by how much column i in
            the order, with an error of 1, moves a later one, p * PANEL + j; 0 for those that are not later.
        products: of each block, float32 [n / PANEL, n, PANEL]: element [p, i, j] is H[i, p * PANEL + j], with damping.
    """

    order: NDArray[np.int64]
    factors: tuple[Floats, ...]
    products: tuple[Floats, ...]

    @classmethod
    def of(cls, blocks: tuple[Doubles, ...], num_threads: int = 1) -> DenseFeedback:
        """Prepare the feedback.

        Args:
            blocks: float64 [n, n] each, positive semidefinite: the blocks along the diagonal of H; n is a multiple of
                PANEL.
            num_threads: for which the blocks are independent work.
        """
        num_threads = threads_within(num_threads, FACTOR_COPIES * max(block.nbytes for block in blocks))
        orders, factors, products = zip(*in_order(_prepared, blocks, num_threads), strict=True)
        starts = np.cumsum([0, *map(len, blocks[:-1])])
        order = np.concatenate([own + start for own, start in zip(orders, starts, strict=True)])
        return cls(order, factors, products)

    def round(self, x: Floats, scales: Floats, values: Floats, codes: NDArray[np.int8]) -> None:
        """Round rows.

        Args:
            x: float32 [rows, columns], finite.
            scales: float32 [rows, groups], exactly as the kernels will see them; a group is columns / groups wide.
            values: float32 [n], the grid in ascending order.
            codes: int8 [rows, columns], receives indices into values, as the lower 8 bits.
        """
        for factor, (start, stop) in zip(self.factors, self._extents, strict=True):
            order, middles = self.order[start:stop], _middles(values)
            feedback_kernels.round_dense(x, scales, values, middles, order, factor, codes)

    def revise(
        self, x: Floats, candidates: Floats, values: Floats, chosen: NDArray[np.uint8], codes: NDArray[np.int8]
    ) -> None:
        """Let the error of rows fall by other scales and codes, group by group, the rest of the row as it stands.

        Args:
            x, values: as in `round`.
            candidates: float32 [n, rows, groups], scales that a group may have.
            chosen: uint8 [rows, groups], the index of each group's scale, receives the new ones.
            codes: int8 [rows, columns], indices into values, receives the new ones.
        """
        for products, (start, stop) in zip(self.products, self._extents, strict=True):
            revision_kernels.revise(x, candidates, values, _middles(values), start, stop, products, chosen, codes)

    @property
    def _extents(self) -> list[tuple[int, int]]:
        """First column and end of each block."""
        edges = np.cumsum([0, *(factor.shape[1] for factor in self.factors)]).tolist()
        return list(pairwise(edges))


Feedback = LowRankFeedback | DenseFeedback


def _middles(values: Floats) -> Floats:
    middles: Floats = (values[1:] + values[:-1]) * np.float32(0.5)
    return middles


def _prepared(block: Doubles) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return the order of a block's columns, and its member of `factors` and of `products`."""
    order = np.argsort(-np.diag(block), kind="stable")
    factor, damping = _feedback_factor(block[np.ix_(order, order)])
    return order, _panels(factor.T), _panels((block + damping * np.eye(len(block))).astype(np.float32))


def _panels(matrix: Floats) -> Floats:
    """Cut a matrix into panels of PANEL columns, each contiguous."""
    return np.ascontiguousarray(matrix.reshape(len(matrix), -1, PANEL).transpose(1, 0, 2))


def _feedback_factor(h: Doubles) -> tuple[Floats, float]:
    """Return row j = the weights with which earlier columns' errors move column j, from H in the order of rounding.

    Also returns what was added to the diagonal."""
    damping = float(DAMPING * np.diag(h).mean() or 1.0)
    while True:
        try:
            # From H = R R' with R upper triangular follows H^-1 = U' U with U = R^-1, upper triangular, too.
            lower = np.linalg.cholesky((h + damping * np.eye(len(h)))[::-1, ::-1])
            break
        except np.linalg.LinAlgError:
            damping *= 10  # ends: with as much as the largest eigenvalue nothing is singular
    upper = _inverse_of_upper(np.asarray(lower[::-1, ::-1], np.float64))
    return np.ascontiguousarray((upper / np.diag(upper)[:, None]).T.astype(np.float32)), damping


def _inverse_of_upper(matrix: Doubles) -> Doubles:
    """Invert an upper triangular matrix by halves: a fifth of the work of inverting it as any other."""
    if len(matrix) <= INVERTED_WHOLE:
        return np.triu(np.linalg.inv(matrix))
    half = len(matrix) // 2
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = _inverse_of_upper(matrix[:half, :half])
    inverse[half:, half:] = _inverse_of_upper(matrix[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ (matrix[:half, half:] @ inverse[half:, half:])
    return inverse
