"""The page arrays of K and V.

This file owns memory and layout. It knows no sequence and no policy. Invariant: a page id means the same page in all
layers, and one KV head's page is one contiguous run.

Values lie as [num_pages, num_kv_heads, page_size, columns] in each layer, keys with columns and tokens exchanged, so
that the keys of a page stand side by side. `kernels/pages.py` reads and writes them and says where int8 scales are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.packing import KV_GROUP

Pages = NDArray[np.uint16] | NDArray[np.float32] | NDArray[np.int8]

# The kernels read this many columns of a value at a time.
VALUE_TILE_COLUMNS = 16
_STORED: dict[str, type[np.generic]] = {"float16": np.uint16, "float32": np.float32, "int8": np.int8}


def line_lengths(head_dim: int, dtype: str) -> tuple[int, int]:
    """Return how many elements one key and one value of a head take.

    A value's columns are filled up to whole tiles. In int8 each KV_GROUP columns have a float16 scale, two elements
    more.

    Args:
        head_dim: columns of a head.
        dtype: "float16", "float32" or "int8".
    """
    scales = 2 * -(-head_dim // KV_GROUP) if dtype == "int8" else 0
    return head_dim + scales, -(-head_dim // VALUE_TILE_COLUMNS) * VALUE_TILE_COLUMNS + scales


def page_bytes(config: ModelConfig, page_size: int, dtype: str) -> int:
    """Return the bytes that one page of K and V takes over all layers."""
    elements = config.num_layers * config.num_kv_heads * page_size * sum(line_lengths(config.head_dim, dtype))
    return elements * np.dtype(_STORED[dtype]).itemsize


class KVCache:
    """Pages of keys and values for all layers.

    Args:
        config: the model.
        num_pages: pages to make room for. The memory is only taken by the system as pages are first written.
        page_size: tokens a page holds.
        dtype: "float16" (stored as its bits, uint16), "float32", or "int8" with float16 scales.

    Attributes:
        keys: [num_layers, num_pages, num_kv_heads, key length, page_size].
        values: [num_layers, num_pages, num_kv_heads, page_size, value length].
    """

    def __init__(self, config: ModelConfig, *, num_pages: int, page_size: int, dtype: str) -> None:
        self.num_pages, self.page_size, self.dtype = num_pages, page_size, dtype
        shape = config.num_layers, num_pages, config.num_kv_heads
        key_length, value_length = line_lengths(config.head_dim, dtype)
        stored: np.dtype[Any] = np.dtype(_STORED[dtype])
        self.keys: Pages = np.zeros((*shape, key_length, page_size), stored)
        self.values: Pages = np.zeros((*shape, page_size, value_length), stored)

    def copy_page(self, source: int, destination: int) -> None:
        """Copy one page's keys and values in all layers."""
        self.keys[:, destination] = self.keys[:, source]
        self.values[:, destination] = self.values[:, source]
