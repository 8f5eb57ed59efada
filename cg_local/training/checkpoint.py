"""Saves and restores the whole state of a training run.

Owns the checkpoint folder: `step-NNNNNNN.npz` files, each complete in itself. It does not know what the arrays mean.
Invariant: a file under its final name is complete; writing goes to a temporary sibling that is renamed.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cg_local.errors import TrainingError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A training run at one step.

    Attributes:
        arrays: weights and optimizer state by name.
        record: step, data position, seed, recipe and everything else that JSON can hold.
    """

    arrays: Arrays
    record: dict[str, object]


def save(folder: Path, step: int, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write a checkpoint and delete all but the newest `keep`.

    Args:
        folder: created where missing.
        step: number in the file's name; an existing file of that step is replaced.
        checkpoint: what to write.
        keep: files that stay.

    Returns:
        The file written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.npz"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        # NumPy's types take every keyword for the option that it is not.
        np.savez(file, __record__=np.array(json.dumps(checkpoint.record)), **checkpoint.arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for old in sorted(folder.glob("step-*.npz"))[:-keep]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in `folder`, or None."""
    return max(folder.glob("step-*.npz"), default=None)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TrainingError: the file is missing, cut or not a checkpoint.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Checkpoint(arrays, json.loads(str(arrays.pop("__record__"))))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: not a readable checkpoint ({error}). Delete it to resume from the one before."
        ) from error
