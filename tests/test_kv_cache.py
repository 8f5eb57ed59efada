"""Proves the sizes of the page arrays and the copying of pages."""

from __future__ import annotations

import numpy as np
import pytest
from toy_models import MHA, MQA

from cg_local.config import ModelConfig
from cg_local.kv_cache import KVCache, page_bytes


def cache_of(dtype: str, num_pages: int = 5) -> KVCache:
    return KVCache(ModelConfig.from_dict(MHA, "toy"), num_pages=num_pages, page_size=4, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("values", [MQA, MHA], ids=["mqa", "mha"])
def test_page_bytes_are_the_bytes_of_the_arrays_per_page(values: dict[str, object], dtype: str) -> None:
    config = ModelConfig.from_dict(values, "toy")

    cache = KVCache(config, num_pages=5, page_size=8, dtype=dtype)

    assert cache.keys.nbytes + cache.values.nbytes == 5 * page_bytes(config, 8, dtype)


def test_page_bytes_of_the_2b_shape_are_18_kib_a_token_in_float16() -> None:
    # 2 (K and V) * 18 layers * 1 KV head * 256 * 2 bytes = 18,432.
    published = {**MQA, "num_hidden_layers": 18, "head_dim": 256, "num_attention_heads": 8, "hidden_size": 2048}

    assert page_bytes(ModelConfig.from_dict(published, "2b"), 16, "float16") == 16 * 18432


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_copied_page_equals_its_source_in_all_layers(dtype: str) -> None:
    cache = cache_of(dtype)
    random = np.random.default_rng(0)
    cache.keys[:] = random.integers(0, 1000, cache.keys.shape)
    cache.values[:] = random.integers(0, 1000, cache.values.shape)

    cache.copy_page(1, 3)

    np.testing.assert_array_equal(cache.keys[:, 3], cache.keys[:, 1])
    np.testing.assert_array_equal(cache.values[:, 3], cache.values[:, 1])


def test_copying_a_page_leaves_the_others_alone() -> None:
    cache = cache_of("float32")
    cache.keys[:] = np.random.default_rng(0).standard_normal(cache.keys.shape)
    before = cache.keys.copy()

    cache.copy_page(1, 3)

    np.testing.assert_array_equal(cache.keys[:, [0, 1, 2, 4]], before[:, [0, 1, 2, 4]])
