"""The places of a corpus where a prediction is scored, window after window.

Owns the way from windows to rows. It computes nothing. Invariant: row i of any model's figures is the prediction of
`true_ids[i]` from the tokens before it in its window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cg_local.quant.corpora import KINDS, Corpus
from cg_local.quant.corpus_windows import Window

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

CODE_AND_FIM, ALL = "code+fim", "all"
GROUPS = (CODE_AND_FIM, *KINDS, ALL)
"""What figures are told of; the first is what CodeGemma is for, and what its quality is judged by."""


@dataclass(frozen=True)
class Places:
    """The scored places of a corpus.

    Attributes:
        corpus: the windows.
    """

    corpus: Corpus

    @property
    def windows(self) -> tuple[Window, ...]:
        """The corpus's windows."""
        return self.corpus.windows

    @cached_property
    def true_ids(self) -> Integers:
        """The token that each place is to predict, int64 [num_scored]."""
        found = [token_id for window in self.windows for token_id in window.token_ids[window.scored_from :]]
        return np.array(found, np.int64)

    @cached_property
    def documents(self) -> Integers:
        """Number of the file that each place is in, int64 [num_scored]."""
        names = [window.source.rpartition(":")[0] for window in self.windows]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        sizes = [window.num_scored for window in self.windows]
        return np.repeat(np.array([numbers[name] for name in names], np.int64), sizes)

    def mask(self, group: str) -> NDArray[np.bool_]:
        """Which places belong to a group of GROUPS, bool [num_scored]."""
        kinds = {CODE_AND_FIM: ("code", "fim"), ALL: KINDS}.get(group, (group,))
        flags = [window.kind in kinds for window in self.windows]
        return np.repeat(np.array(flags, bool), [window.num_scored for window in self.windows])

    def scored(self, states: list[Floats]) -> Floats:
        """Return the rows of every window that predict its scored tokens, float32 [num_scored, width].

        Args:
            states: float32 [num_tokens, width] of each window.
        """
        rows = [x[window.scored_from - 1 : -1] for x, window in zip(states, self.windows, strict=True)]
        return np.concatenate(rows)

    def slices(self) -> list[slice]:
        """Return the rows of each window."""
        ends = np.cumsum([window.num_scored for window in self.windows])
        return [slice(int(end) - window.num_scored, int(end)) for end, window in zip(ends, self.windows, strict=True)]
