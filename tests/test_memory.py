"""Memory estimates and the refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import toy_models
from toy_engines import engine_of, generate, toy_prompt

from cg_local import kernels
from cg_local.config import EngineConfig, ModelConfig
from cg_local.errors import CapacityError
from cg_local.memory import MemoryNeed, available_bytes, check_memory, memory_need, readable_size

CONFIG = ModelConfig.from_dict(toy_models.MHA, "toy")


def test_memory_need_counts_keys_and_values_of_whole_pages() -> None:
    need = memory_need(1000, "q4", CONFIG, EngineConfig(max_context=17))
    # 2 pages of 16 tokens: K and V, layers, heads, head size, 2 bytes.
    assert need.kv_cache == 2 * 16 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * 2
    assert need.weights == 1000
    assert need.total == need.weights + need.kv_cache + need.scratch


def test_memory_need_is_bounded_by_the_context_of_the_model() -> None:
    limit = CONFIG.max_position_embeddings
    assert memory_need(0, "q4", CONFIG, EngineConfig(max_context=10 * limit)) == memory_need(
        0, "q4", CONFIG, EngineConfig()
    )


def test_memory_need_of_the_7b_shape_is_what_its_architecture_says() -> None:
    big = replace(CONFIG, num_layers=28, num_kv_heads=16, num_heads=16, head_dim=256, max_position_embeddings=8192)
    assert memory_need(0, "q4", big, EngineConfig()).kv_cache == 8192 * 28 * 16 * 256 * 2 * 2


def test_keys_and_values_in_int8_take_little_more_than_half_of_float16() -> None:
    half, byte = (memory_need(0, "q4", CONFIG, EngineConfig(kv_dtype=name)).kv_cache for name in ("float16", "int8"))
    # 32 columns: 32 bytes and a scale of 2, against 64.
    assert byte * 64 == half * 34


def test_7b_at_q4_with_2048_tokens_needs_less_than_8_gib() -> None:
    sizes = {"num_layers": 28, "num_kv_heads": 16, "num_heads": 16, "head_dim": 256, "hidden_size": 3072}
    big = replace(CONFIG, **sizes, intermediate_size=24576, vocab_size=256000, max_position_embeddings=8192)
    need = memory_need(int(4.97 * 2**30), "q4", big, EngineConfig(max_context=2048))
    assert need.kv_cache == 7 * 2**27  # 0.875 GiB
    assert need.total < 6.1 * 2**30


def test_keys_and_values_beside_bf16_weights_are_counted_as_float32() -> None:
    narrow, wide = (memory_need(0, scheme, CONFIG, EngineConfig()).kv_cache for scheme in ("q8", "bf16"))
    assert wide == 2 * narrow


def test_memory_that_does_not_fit_is_refused_with_the_numbers() -> None:
    need = MemoryNeed(weights=3 << 30, kv_cache=1 << 30, scratch=256 << 20)
    message = (
        r"big: needs 4.2 GiB of memory \(weights 3.0 GiB, K/V 1.0 GiB, scratch 256.0 MiB\), 2.0 GiB are free; "
        r"use a smaller context, K and V in int8 \(--kv-dtype int8\), or a smaller scheme, or close other programs"
    )
    with pytest.raises(CapacityError, match=message):
        check_memory("big", need, 2 << 30)
    check_memory("big", need, 5 << 30)
    check_memory("big", need, None)


def test_int8_is_not_advised_where_it_is_chosen() -> None:
    need = memory_need(3 << 30, "q4", CONFIG, EngineConfig(kv_dtype="int8"))
    with pytest.raises(CapacityError, match="use a smaller context, or a smaller scheme, or close other programs"):
        check_memory("big", need, 1 << 30)


@pytest.mark.parametrize("variant", ["mqa", "mha"])
@pytest.mark.parametrize(("scheme", "activations"), [("q4", "int8"), ("q8", "int8"), ("q8", "int16"), ("bf16", "int8")])
def test_scratch_of_a_whole_chunk_is_within_the_estimate(
    toy_folder: Callable[[str, str], Path], variant: str, scheme: str, activations: str
) -> None:
    engine = engine_of(toy_folder(variant, scheme), activations=activations, prefill_chunk=256)
    generate(engine, toy_prompt(300), max_tokens=2)
    is_fused = bool(kernels.FUSED_FORMATS) and activations == "int8"
    need = memory_need(0, scheme, engine.model.config, engine.config, is_fused=is_fused)
    # The portable kernels and int16 are not told apart by format: their estimate may be high.
    assert engine.model.scratch_bytes <= need.scratch
    if is_fused and scheme != "bf16":
        unfused = memory_need(0, scheme, engine.model.config, engine.config, is_fused=False)
        assert need.scratch < unfused.scratch


def test_available_memory_is_positive_where_it_is_known() -> None:
    available = available_bytes()
    assert available is None or available > 1 << 20


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 bytes"), (3 << 9, "1.5 KiB"), (3 << 19, "1.5 MiB"), (5 << 29, "2.5 GiB")]
)
def test_size_is_written_in_binary_units(size: int, text: str) -> None:
    assert readable_size(size) == text
