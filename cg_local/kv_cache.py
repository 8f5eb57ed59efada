"""The page arrays of K and V.

This file owns memory and layout: for each layer [num_pages, num_kv_heads, page_size, head_dim], so that one KV head's
page is one contiguous run. It knows no sequence and no policy. Invariant: a page id means the same page in all layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig

Pages = NDArray[np.uint16] | NDArray[np.float32]

BYTES_PER_VALUE = {"float16": 2, "float32": 4}


def page_bytes(config: ModelConfig, page_size: int, dtype: str) -> int:
    """Return the bytes that one page of K and V takes over all layers."""
    values = 2 * config.num_layers * config.num_kv_heads * page_size * config.head_dim
    return values * BYTES_PER_VALUE[dtype]


class KVCache:
    """Pages of keys and values for all layers.

    Args:
        config: the model.
        num_pages: pages to make room for. The memory is only taken by the system as pages are first written.
        page_size: tokens a page holds.
        dtype: "float16" (stored as its bits, uint16) or "float32".

    Attributes:
        keys, values: [num_layers, num_pages, num_kv_heads, page_size, head_dim].
    """

    def __init__(self, config: ModelConfig, *, num_pages: int, page_size: int, dtype: str) -> None:
        self.num_pages, self.page_size, self.dtype = num_pages, page_size, dtype
        shape = (config.num_layers, num_pages, config.num_kv_heads, page_size, config.head_dim)
        stored: np.dtype[Any] = np.dtype(np.uint16 if dtype == "float16" else np.float32)
        self.keys: Pages = np.zeros(shape, stored)
        self.values: Pages = np.zeros(shape, stored)

    def copy_page(self, source: int, destination: int) -> None:
        """Copy one page's keys and values in all layers."""
        self.keys[:, destination] = self.keys[:, source]
        self.values[:, destination] = self.values[:, source]
