"""Which matrix gets how many bits when the size of the whole is given.

This file owns the choice under a budget of bytes; what a format costs a matrix is `budget`'s. Invariant: the bytes
never exceed the budget, and no other choice that keeps it expects less divergence, up to one unit of bytes a matrix.

The choice is exact: a table of the least divergence for every number of bytes grows by one matrix after the other. A
walk by the best gain for a byte would do for many small matrices, but the embedding is a fifth of 2B and half of nano.
Source: the multiple-choice knapsack problem; Dudzinski and Walukiewicz, 1987.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cg_local.errors import QuantizeError

CANDIDATES = ("c3g32", "c4g32", "c4g16", "i6g32", "i8g64")
MAX_UNITS = 100_000  # entries of the table; bytes are counted in units of budget / MAX_UNITS, rounded up


@dataclass(frozen=True)
class Choice:
    """A format that a matrix could get.

    Attributes:
        format: of packing.FORMATS.
        num_bytes: of the matrix in it.
        divergence: expected of the output when only this matrix is quantized; any unit common to all matrices.
    """

    format: str
    num_bytes: int
    divergence: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, str]:
    """Choose a format for each matrix.

    Args:
        choices: by name of the matrix, at least one each.
        budget: bytes of all matrices together.

    Returns:
        name -> format.

    Raises:
        QuantizeError: the smallest formats together exceed the budget.
    """
    smallest = sum(min(choice.num_bytes for choice in found) for found in choices.values())
    if smallest > budget:
        raise QuantizeError(
            f"the smallest formats take {smallest:,} bytes, {budget:,} are allowed; ask for more bits a weight"
        )
    unit = -(-budget // MAX_UNITS) or 1
    units = budget // unit
    least: NDArray[np.float64] = np.zeros(units + 1)
    taken = []
    for found in choices.values():
        totals = np.full((len(found), units + 1), np.inf)
        for row, choice in zip(totals, found, strict=True):
            size = -(-choice.num_bytes // unit)
            if size <= units:
                row[size:] = least[: units + 1 - size] + choice.divergence
        taken.append(totals.argmin(axis=0).astype(np.uint8))
        least = totals.min(axis=0)
    if not np.isfinite(least[units]):
        # They fit by the byte, but not in units.
        return {name: min(found, key=lambda choice: choice.num_bytes).format for name, found in choices.items()}
    formats = {}
    for (name, found), table in zip(reversed(list(choices.items())), reversed(taken), strict=True):
        choice = found[table[units]]
        formats[name] = choice.format
        units -= -(-choice.num_bytes // unit)
    return {name: formats[name] for name in choices}
