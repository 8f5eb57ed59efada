"""The reference's final states of a corpus's scored places, kept in a file for the next comparison.

Owns the file. The states are some kilobytes a token, the logits they stand for a megabyte. Invariant: a file serves
only the weights and the windows it was computed from, which its key names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cg_local.errors import QualityError

Floats = NDArray[np.float32]


def states_key(checkpoint_digest: str, corpus_digest: str) -> str:
    """Return what names the states of some weights on some windows, 64 hexadecimal digits."""
    return hashlib.sha256(f"{checkpoint_digest}:{corpus_digest}:1".encode()).hexdigest()


def read_states(path: Path, key: str) -> Floats | None:
    """Return stored states, float32 [num_scored, hidden_size]; None where there is no such file.

    Raises:
        QualityError: the file is damaged, no file of states, or of other weights or windows.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored, states = str(arrays["key"]), arrays["states"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as cause:
        raise QualityError(f"{path}: no file of stored states, or a damaged one; remove it or name another") from cause
    if stored != key:
        raise QualityError(f"{path}: stored states of other weights or other texts; remove it or name another file")
    return np.asarray(states, np.float32)


def write_states(path: Path, key: str, states: Floats) -> None:
    """Store states; the file appears whole or not at all.

    Raises:
        QualityError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, key=np.array(key), states=states)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as cause:
        raise QualityError(f"{path}: cannot be written ({cause.strerror}); name another place by --states") from cause
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
