"""A model folder's weights under their published names and conventions, for the paths that compute without kernels.

This file owns the way back from packed parts to float32 rows. It does not own the bits (`packing`). Invariant: what it
gives is exactly what the codes stand for, and it holds one slab beside its result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cg_local.model_folder import ModelFolder
from cg_local.packing import TILE_ROWS, PackedMatrix, dequantize

Floats = NDArray[np.float32]


class DequantizedFolder:
    """A source of tensors like `checkpoint.Checkpoint`, over a model folder.

    Args:
        folder: opened.

    Attributes:
        config: of the model.
        tensor_names: in the order of config.tensor_shapes(), then "lm_head.weight" where it is separate.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self.config = folder.config
        self._matrices, self._gains = folder.matrices, folder.gains
        names = tuple(folder.config.tensor_shapes())
        self.tensor_names: tuple[str, ...] = names + tuple(name for name in folder.matrices if name not in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of `tensor_names`."""
        return self._gains[name].shape if name in self._gains else self._matrices[name].shape

    def tensor(self, name: str) -> Floats:
        """Return a whole tensor as float32; a norm's as an offset from 1, as published."""
        if name in self._gains:
            offset: Floats = self._gains[name] - np.float32(1)
            return offset
        return dequantize(self._matrices[name])

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Return rows start..stop of a matrix, float32 [stop - start, columns], unpacking only their tiles."""
        matrix = self._matrices[name]
        first, last = start // TILE_ROWS, -(-stop // TILE_ROWS)
        parts = {part: array if part == "codebook" else array[first:last] for part, array in matrix.parts.items()}
        num_rows = min(last * TILE_ROWS, matrix.shape[0]) - first * TILE_ROWS
        slab = dequantize(PackedMatrix(matrix.format, (num_rows, matrix.shape[1]), parts))
        return slab[start - first * TILE_ROWS : stop - first * TILE_ROWS]
