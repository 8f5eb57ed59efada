"""Runs `cg-local`, as a process of its own or (quicker) inside of the test's, and makes toy models for it.

This file owns the environment of those runs: caches and data in a folder of the test, no terminal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_models

from cg_local.cli.app import main

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


class Inside:
    """Runs the command line inside of this process; for what ends before a model is asked.

    Args:
        capture: pytest's capfdbinary.
        patch: pytest's monkeypatch.
    """

    def __init__(self, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def run(self, *arguments: str, home: Path) -> subprocess.CompletedProcess[bytes]:
        """Run as `run` does."""
        self._patch.chdir(home)
        for name, value in environment(home).items():
            self._patch.setenv(name, value)
        self._patch.setattr(sys, "argv", ["cg-local", *arguments])
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        captured = self._capture.readouterr()
        return subprocess.CompletedProcess(arguments, int(str(status or 0)), captured.out, captured.err)


def toy_checkpoint(folder: Path) -> Path:
    """Write a small random checkpoint with a tokenizer."""
    return toy_models.write_toy_checkpoint(folder, has_tokenizer=True)
