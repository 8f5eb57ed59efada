"""How long a prompt may be: what the model was trained for, what the file leaves, how long a person waits.

Owns these rules and the measured speeds of reading prompts, which lie in the cache folder. It builds no prompt.
Invariant: a budget does not depend on the cursor, and changes in coarse steps, so that a small edit or a little faster
run does not exchange the context and with it the K and V that are already there.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cg_local.atomic_file import replace_file
from cg_local.errors import SettingsError
from cg_local.model_store import cache_folder
from cg_local.models import TRAINED_TOKENS
from cg_local.prompts import CONTEXT_SHARE

DEFAULT_PROMPT_TOKENS = 2048
"""Where nothing else is said and the model can take it."""

ANSWER_TOKENS = 64
"""What a default prompt leaves of a known trained length to the answer. To 144 lines nano gave 0.10 +- 0.05 nats a
token less behind 896 tokens of a file than behind 448 (benchmarks/README.md, "Context of the repository")."""

MIN_TRAINED_TOKENS = 2048
"""Models for fewer tokens get no context unasked: nano gained nothing by it, whatever its part of the prompt (the
same measurement)."""

FIRST_PROMPT_TOKENS = 128
"""A prompt under a time limit while the model's speed is unknown; 2B at q4 reads them in 2.5 s on two cores."""

MIN_PROMPT_TOKENS = 64
MIN_MEASURED_TOKENS = 64
"""Fewer tokens say little about the speed: the first step has its own cost."""

WEIGHT_OF_SLOWER = 0.3
"""Of a slower measurement, which another process may have delayed."""

WEIGHT_OF_FASTER = 0.7
NUM_STEPS = 8
"""A budget is rounded down to eighths of its power of two, a file up to eighths of the prompt."""


def trained_tokens(name: str, max_position_embeddings: int) -> int:
    """The longest text that a model knows from its training.

    Args:
        name: as the model was asked for; that of an embedded one says more than its config.
        max_position_embeddings: of its config.
    """
    return min(TRAINED_TOKENS.get(name, max_position_embeddings), max_position_embeddings)


def default_prompt_tokens(name: str) -> int:
    """Tokens of a model's prompt where nobody says how many."""
    return TRAINED_TOKENS[name] - ANSWER_TOKENS if name in TRAINED_TOKENS else DEFAULT_PROMPT_TOKENS


def context_pays(trained: int, is_git: bool) -> bool:
    """Whether other files are put into a prompt unasked.

    Args:
        trained: of `trained_tokens`.
        is_git: the file lies in a git work tree, which says which files belong together.
    """
    return is_git and trained >= MIN_TRAINED_TOKENS


def context_budget(max_prompt_tokens: int, file_tokens: int, *, fills_prompt: bool) -> int:
    """Tokens of a prompt for other files.

    Args:
        max_prompt_tokens: of the whole prompt.
        file_tokens: of the whole file to fill, its path line and the control tokens.
        fills_prompt: take all that the file leaves, not only the share that is kept anyway.
    """
    share = int(max_prompt_tokens * CONTEXT_SHARE)
    if not fills_prompt:
        return share
    step = max(max_prompt_tokens // NUM_STEPS, 1)
    return max(share, max_prompt_tokens - -(-file_tokens // step) * step)


def tokens_in(seconds: float, tokens_per_second: float | None) -> int:
    """Tokens of a prompt that a model reads in a time; a fixed number while its speed is unknown."""
    if tokens_per_second is None:
        return FIRST_PROMPT_TOKENS
    tokens = int(seconds * tokens_per_second)
    step = max(1, (1 << tokens.bit_length()) // 2 // NUM_STEPS)
    return max(MIN_PROMPT_TOKENS, tokens // step * step)


@dataclass
class PrefillSpeeds:
    """Prompt tokens a second, by model, as earlier runs measured them.

    Attributes:
        path: of the file that keeps them.
    """

    path: Path

    @classmethod
    def of_user(cls) -> PrefillSpeeds:
        """Those in the user's cache folder."""
        return cls(cache_folder() / "prefill-speeds.json")

    def find(self, model: str) -> float | None:
        """The speed of a model; None where it was never measured or the file cannot be read."""
        value = self._read().get(model)
        return float(value) if isinstance(value, int | float) and value > 0 else None

    def remember(self, model: str, num_tokens: int, seconds: float) -> None:
        """Take a measurement into account; a cache folder that cannot be written costs only the memory.

        Args:
            model: what tells models, schemes and numbers of threads apart.
            num_tokens: computed, not found in a cache.
            seconds: what they took, with kernels that were compiled before.
        """
        if num_tokens < MIN_MEASURED_TOKENS or seconds <= 0:
            return
        measured, known = num_tokens / seconds, self.find(model)
        if known is not None:
            weight = WEIGHT_OF_FASTER if measured > known else WEIGHT_OF_SLOWER
            measured = weight * measured + (1 - weight) * known
        # A change that moves no budget is not worth a write.
        if known is None or abs(measured - known) > known / (2 * NUM_STEPS):
            speeds = {**self._read(), model: round(measured, 2)}
            with contextlib.suppress(SettingsError):
                replace_file(self.path, json.dumps(speeds, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
