"""Proves that K and V in int8 obey the engine's equalities, and how little they move the logits; long contexts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_engines import divergence, engine_of, generate, result_of, toy_prompt
from toy_models import MHA, MQA, write_toy_checkpoint

from cg_local.config import KV_DTYPES
from cg_local.quant import quantize
from cg_local.sampling import logprob_of

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)
MODELS = [("mqa", "q4"), ("mha", "q8")]
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.mark.parametrize(("family", "scheme"), MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_equals_prefill_at_once_in_int8_bit_for_bit(
    family: str, scheme: str, chunk: int, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    whole = engine_of(folder, kv_dtype="int8").logits(PROMPT)

    found = engine_of(folder, kv_dtype="int8", prefill_chunk=chunk).logits(PROMPT)

    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(("family", "scheme"), MODELS)
def test_decoding_in_int8_gives_the_logprobs_of_prefilling_the_same_text_bit_for_bit(
    family: str, scheme: str, toy_folder: FolderMaker
) -> None:
    engine = engine_of(toy_folder(family, scheme), kv_dtype="int8")

    decoded = generate(engine, PROMPT[:250], max_tokens=20, temperature=1.5, seed=1)

    rows = engine.logits(decoded.token_ids)[249:-1]
    expected = [logprob_of(row, token_id) for row, token_id in zip(rows, decoded.completion_ids, strict=True)]
    assert decoded.logprobs == expected


@pytest.mark.parametrize(("family", "scheme"), MODELS)
def test_cached_and_copied_pages_in_int8_give_the_result_of_a_cold_run(
    family: str, scheme: str, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    cold = generate(engine_of(folder, kv_dtype="int8"), PROMPT[:100], max_tokens=12)
    engine = engine_of(folder, kv_dtype="int8")
    generate(engine, PROMPT[:90], max_tokens=3)
    first = engine.add(PROMPT[:100])
    for _ in range(3):
        engine.step()

    twin = engine.fork(first)  # whose half full page is copied when one of the two writes
    engine.run()

    assert first.num_cached == 80
    assert twin.token_ids == first.token_ids
    assert result_of(cold)[0] == first.completion_ids[:12]


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_int8_moves_the_distribution_by_less_than_the_weights_of_q4_do(family: str, toy_folder: FolderMaker) -> None:
    folder = toy_folder(family, "bf16")
    exact = engine_of(folder, kv_dtype="float32").logits(PROMPT)

    found = engine_of(folder, kv_dtype="int8").logits(PROMPT)

    assert 0 < divergence(exact, found) < 2e-5


@pytest.fixture(scope="module")
def long_prompt() -> list[int]:
    return [2, *np.random.default_rng(3).integers(0, 768, 8191).tolist()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("2b", (MQA, 8, 1, 2048)), ("7b", (MHA, 16, 16, 3072))])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_context_of_8192_tokens_at_the_attention_shapes_of_both_sizes(
    name: str, shape: tuple[dict[str, object], int, int, int], kv_dtype: str, long_prompt: list[int], tmp_path: Path
) -> None:
    values, num_heads, num_kv_heads, hidden_size = shape
    sizes = {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "hidden_size": hidden_size}
    changes = {"head_dim": 256, "max_position_embeddings": 8192, "num_hidden_layers": 1}
    checkpoint = write_toy_checkpoint(tmp_path / name, {**values, **sizes, **changes}, has_tokenizer=True)
    quantize(checkpoint, tmp_path / "model", "q4")

    decoded = generate(engine_of(tmp_path / "model", kv_dtype=kv_dtype), long_prompt[:-2], max_tokens=2)

    rows = engine_of(tmp_path / "model", kv_dtype=kv_dtype, prefill_chunk=300).logits(decoded.token_ids)[8189:-1]
    expected = [logprob_of(row, token_id) for row, token_id in zip(rows, decoded.completion_ids, strict=True)]
    assert decoded.logprobs == expected
    assert np.isfinite(decoded.logprobs).all()
