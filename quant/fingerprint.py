"""Which weights something was made from: a digest over a sample of them.

This file owns the sample. Invariant: the same weights have the same fingerprint in every container that holds them
exactly (one file, shards, bfloat16, float32, an unquantized GGUF).

It tells one model from another: other sizes, another training, a fine-tune or a merged adapter, which move all rows of
some matrix. It is no proof against whoever wants to deceive, and an edit of single rows may lie between the sampled.
"""

from __future__ import annotations

import hashlib

import numpy as np

from cg_local.checkpoint import Checkpoint

SAMPLED_ROWS = 8  # of each matrix, the first and the last among them: 8 MiB of 2B, 19 MiB of 7B


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 over name, shape and sampled rows of every tensor, 64 hexadecimal digits.

    Raises:
        CheckpointError: the weights cannot be read, or a sampled one is not finite.
    """
    digest = hashlib.sha256()
    for name in checkpoint.tensor_names:
        shape = checkpoint.shape(name)
        digest.update(f"{name} {list(shape)}\n".encode())
        if len(shape) == 1:
            # A GGUF file holds 1 + w, which is all that is left of a w near 0.
            _add(digest, checkpoint.rows(name, 0, shape[0]) + np.float32(1))
        else:
            for row in sorted({number * (shape[0] - 1) // (SAMPLED_ROWS - 1) for number in range(SAMPLED_ROWS)}):
                _add(digest, checkpoint.rows(name, row, row + 1))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    # Adding 0 makes one zero of both.
    digest.update(np.ascontiguousarray(values + np.float32(0), "<f4").data)
