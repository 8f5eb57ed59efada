"""Runs `cg-local` as a process of its own, as a person does, and makes toy models for it.

This file owns the environment of those processes: caches and data in a folder of the test, no terminal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import toy_models

from cg_local import quant

COMMAND = (sys.executable, "-m", "cg_local.cli")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a process whose cache and data lie in `home`."""
    return {
        **os.environ,
        "CG_LOCAL_CACHE": str(home / "cache"),
        "CG_LOCAL_DATA": str(home / "data"),
        "COLUMNS": "100",
        "LANG": "C",
        "LC_ALL": "C",
    }


def run(*arguments: str, home: Path, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run `cg-local` and return status, stdout and stderr."""
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, cwd=cwd or home, env=environment(home), timeout=240
    )


def toy_checkpoint(folder: Path) -> Path:
    """Write a small random checkpoint with a tokenizer."""
    return toy_models.write_toy_checkpoint(folder, has_tokenizer=True)


def toy_model(home: Path) -> Path:
    """Quantize a toy checkpoint in `home` and return its model folder."""
    folder = home / "toy-q4"
    quant.quantize(toy_checkpoint(home / "toy"), folder, "q4")
    return folder
