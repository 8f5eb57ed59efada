"""Readers of published weights: one tensor, or a slab of its rows, at a time, as float32.

This package owns finding, checking and decoding what others published. It does not quantize. Invariant: an opened
`Checkpoint` holds exactly the tensors of its config, each of the right shape and of a known floating-point type.
"""

from cg_local.checkpoint.opening import open_checkpoint
from cg_local.checkpoint.published import Checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
