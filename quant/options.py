"""What a person can ask of a conversion.

This file owns the options and nothing that they lead to. Invariant: importing it loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

METHODS = ("fast", "imp", "gptq")


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        scheme: of schemes.SCHEMES; without effect where bits_per_weight is given.
        method: of METHODS; None: "imp" where there is an importance pack, else "fast".
        importance: file of the pack; None: importance.safetensors beside the published weights.
        bits_per_weight: mean over all weights, at most; None: as the scheme says.
        corpus: files and folders with texts, for "gptq"; None: the installed standard library.
        calibration_tokens: of these texts.
        window_tokens: of one text at most.
    """

    scheme: str = "q4"
    method: str | None = None
    importance: Path | None = None
    bits_per_weight: float | None = None
    corpus: Sequence[Path] | None = None
    calibration_tokens: int = 16384
    window_tokens: int = 512
