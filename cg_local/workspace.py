"""Arrays that outlive a step.

Owns the memory of activations, by name; what is in it belongs to whoever asked last. Invariant: names share no memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Workspace:
    """Named arrays that grow to the largest step seen, so that steps do not pay for fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> NDArray[Any]:
        """Return an uninitialized array; the next call with this name reuses its memory, or returns the same array."""
        array = self._arrays.get(name)
        # Decode steps ask some 300 times for arrays of the shapes that the step before had.
        if array is None or array.shape != shape:
            array = self._arrays[name] = self._buffer(name, math.prod(shape), dtype).reshape(shape)
        return array

    def _buffer(self, name: str, size: int, dtype: type[np.generic]) -> NDArray[Any]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size]

    @property
    def num_bytes(self) -> int:
        """Bytes held at the moment."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
