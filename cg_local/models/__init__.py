"""The models that the package carries, as published weights in the Hugging Face layout.

This package owns where they lie. It neither reads nor quantizes them. Invariant: a name in EMBEDDED is never looked up
anywhere else.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("nano", "nano-it")


def embedded_checkpoint(name: str) -> Path:
    """Return the folder of an embedded checkpoint; `name` is one of EMBEDDED."""
    return Path(__file__).parent / name
