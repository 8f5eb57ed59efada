"""The models that the package carries, as published weights in the Hugging Face layout.

This package owns where they lie. It neither reads nor quantizes them. Invariant: a name in EMBEDDED is never looked up
anywhere else.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("nano", "nano-it")
TRAINED_TOKENS = {"nano": 512, "nano-it": 512}
"""Longest texts they were trained on (`sequence_lengths` of their recipes); they take longer ones, and get worse."""
INFILL_ORDERS = {"nano": "spm"}
"""The order of a prompt in which they were measured to fill gaps best: nano passes 7.9 % of HumanEval's single lines in
SPM and 3.4 % in PSM (its model card). Of the published models only PSM is documented."""


def infill_order(name: str) -> str:
    """Return the order in which a model is asked to fill a gap where nobody says how: "psm" or "spm"."""
    return INFILL_ORDERS.get(name, "psm")


def embedded_checkpoint(name: str) -> Path:
    """Return the folder of an embedded checkpoint; `name` is one of EMBEDDED."""
    return Path(__file__).parent / name
