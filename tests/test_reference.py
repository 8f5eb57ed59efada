"""The reference equals transformers' float32 logits, and each of its steps equals its formula in float64."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_goldens import CASES, GOLDEN_PATH, NUM_CHANNELS, POSITIONS, GoldenCase, run_transformers
from numpy.typing import NDArray
from toy_models import MHA, MQA, Weights, normal_like, stored_values, toy_weights, write_toy_checkpoint

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CapacityError, PromptError

# Largest difference as a share of the logits' range. The stored cases measure at most 6e-7 here; another BLAS sums in
# another order, which costs a few units in the last place per layer.
TOLERANCE = 1e-5
GIVEN_CHECKPOINT = os.environ.get("CG_LOCAL_CHECKPOINT")


class Tensors:
    """A source of tensors that are already in memory."""

    def __init__(self, values: Mapping[str, object], weights: Weights) -> None:
        self.config = ModelConfig.from_dict(values, "toy")
        self.tensor_names = tuple(weights)
        self._weights = weights

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._weights[name]


def toy_source(values: Mapping[str, object] = MQA, seed: int = 0) -> Tensors:
    return Tensors(values, toy_weights(ModelConfig.from_dict(values, "toy"), seed))


def share_of_range(found: NDArray[np.float32], expected: NDArray[np.float32], value_range: float) -> float:
    return float(np.abs(found - expected).max() / value_range)


@pytest.mark.parametrize("name", CASES)
def test_reference_equals_the_stored_logits_of_transformers(tmp_path: Path, name: str) -> None:
    case, positions = CASES[name], list(POSITIONS)
    folder = write_toy_checkpoint(tmp_path / name, case.values, seed=case.seed, dtype=case.dtype)
    with np.load(GOLDEN_PATH) as goldens:
        expected, low_high = goldens[f"{name}.logits"], goldens[f"{name}.logits_range"]
        streams = goldens[f"{name}.residual_streams"]

    logits = reference.logits(folder, case.token_ids)
    stream = list(reference.residual_stream(open_checkpoint(folder), case.token_ids))[:-1]

    assert logits.dtype == np.float32
    assert logits.shape == (len(case.token_ids), case.values["vocab_size"])
    assert share_of_range(logits[positions], expected, float(np.ptp(low_high))) < TOLERANCE
    np.testing.assert_allclose([logits.min(), logits.max()], low_high, rtol=1e-4)
    for found, golden in zip(stream, streams, strict=True):
        np.testing.assert_allclose(found[positions, :NUM_CHANNELS], golden, atol=1e-4)


def test_goldens_stay_small() -> None:
    assert GOLDEN_PATH.stat().st_size < 300_000


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("values", [MQA, MHA], ids=["mqa", "mha"])
def test_reference_equals_transformers_over_8_layers_and_300_tokens(tmp_path: Path, values: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    case = GoldenCase({**values, "num_hidden_layers": 8}, "BF16", 21)
    folder = write_toy_checkpoint(tmp_path / "m", case.values, seed=case.seed)
    expected = run_transformers(folder, case.token_ids).logits

    error = share_of_range(reference.logits(folder, case.token_ids), expected, float(np.ptp(expected)))

    print(f"largest difference: {error:.1e} of the logits' range")
    assert error < TOLERANCE


@pytest.mark.transformers
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(GIVEN_CHECKPOINT is None, reason="CG_LOCAL_CHECKPOINT names no checkpoint folder")
def test_reference_equals_transformers_on_a_given_checkpoint() -> None:
    """2B needs 15 GB for transformers. Random weights of that shape measured 4.5e-6 of the range (64 tokens)."""
    pytest.importorskip("transformers")
    assert GIVEN_CHECKPOINT is not None
    folder = Path(GIVEN_CHECKPOINT)
    token_ids = GoldenCase({"vocab_size": open_checkpoint(folder).config.vocab_size}, "", 5).token_ids[:64]
    expected = run_transformers(folder, token_ids).logits

    error = share_of_range(reference.logits(folder, token_ids), expected, float(np.ptp(expected)))

    print(f"largest difference: {error:.1e} of the logits' range")
    assert error < 2e-4


def test_reference_takes_any_source_of_tensors(tmp_path: Path) -> None:
    weights = {name: stored_values(values, "BF16") for name, values in toy_weights(toy_source().config).items()}
    folder = write_toy_checkpoint(tmp_path / "m")

    from_memory = reference.logits(Tensors(MQA, weights), [2, 500, 9])

    np.testing.assert_array_equal(from_memory, reference.logits(str(folder), [2, 500, 9]))


def test_reference_logits_of_a_prefix_do_not_depend_on_what_follows() -> None:
    token_ids = [2, *range(100, 369)]
    changed = [*token_ids[:260], 7, 7, 7, 7]

    before = reference.logits(toy_source(), token_ids)[:260]

    np.testing.assert_allclose(reference.logits(toy_source(), changed)[:260], before, atol=1e-5)


def test_reference_blocks_of_queries_equal_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids = [2, *range(300, 370)]
    whole = reference.logits(toy_source(MHA), token_ids)
    monkeypatch.setattr(reference, "QUERY_BLOCK", 7)

    np.testing.assert_allclose(reference.logits(toy_source(MHA), token_ids), whole, atol=1e-5)


def test_reference_multi_query_equals_multi_head_with_repeated_keys() -> None:
    repeated = {**MQA, "num_key_value_heads": 4}
    weights = dict(toy_weights(toy_source().config))
    for name, values in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = np.tile(values, (4, 1))
    token_ids = list(range(30))

    from_one = reference.logits(toy_source(), token_ids)

    np.testing.assert_allclose(reference.logits(Tensors(repeated, weights), token_ids), from_one, atol=1e-5)


def test_reference_uses_a_separate_head_only_where_it_is_named() -> None:
    weights = toy_weights(toy_source().config)
    head = np.roll(weights["model.embed_tokens.weight"], 1, axis=0)
    tied = reference.logits(toy_source(), [2, 3])

    separate = reference.logits(Tensors(MQA, {**weights, "lm_head.weight": head}), [2, 3])

    np.testing.assert_allclose(separate, np.roll(tied, 1, axis=1), atol=1e-5)


@pytest.mark.parametrize(("hidden_size", "scale"), [(2048, 45.25), (3072, 55.5)])
def test_embed_rounds_the_scale_as_bf16_only_when_asked(hidden_size: int, scale: float) -> None:
    table = np.ones((3, hidden_size), np.float32)
    token_ids = np.array([0, 2])

    assert reference.embed(table, token_ids, "bf16")[1, 0] == scale
    assert reference.embed(table, token_ids, "exact")[1, 0] == np.float32(math.sqrt(hidden_size))


def test_reference_logits_change_with_the_embedding_scale() -> None:
    values = {**MQA, "hidden_size": 192}  # sqrt(192) = 13.8564, as bf16 13.875
    exact = reference.logits(toy_source(values), [2, 3])
    rounded = reference.logits(toy_source(values), [2, 3], embedding_scale="bf16")

    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.1)


def test_rms_norm_equals_its_formula() -> None:
    x, weight = normal_like(0, "x", (5, 64)) * 3, normal_like(0, "w", (64,)) * np.float32(0.2)
    wide = x.astype(np.float64)

    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * (1 + weight.astype(np.float64))

    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-6), expected, rtol=2e-6)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not reference.rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-6).any()


def test_rope_turns_the_halves_of_a_head_by_position_times_frequency() -> None:
    head_dim, position = 8, 5
    x = normal_like(0, "x", (1, 2, head_dim))
    cos, sin = reference.rotary_table(np.array([position]), head_dim, 10000.0)
    rotated = reference.rope(x, cos, sin)

    for head in range(2):
        for pair in range(head_dim // 2):
            angle = position * 10000.0 ** (-2 * pair / head_dim)
            turned = complex(x[0, head, pair], x[0, head, pair + 4]) * complex(math.cos(angle), math.sin(angle))
            found = complex(rotated[0, head, pair], rotated[0, head, pair + 4])
            assert abs(found - turned) < 1e-6


def test_rope_products_depend_on_the_distance_alone() -> None:
    query, key = normal_like(0, "q", (1, 1, 64)), normal_like(0, "k", (1, 1, 64))

    def product(query_position: int, key_position: int) -> float:
        turned = [
            reference.rope(x, *reference.rotary_table(np.array([position]), 64, 10000.0))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(1004, 1000), abs=2e-3)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (4, 2), (3, 3)])
def test_attention_equals_its_formula(num_heads: int, num_kv_heads: int) -> None:
    queries = normal_like(0, "q", (6, num_heads, 8)).astype(np.float64)
    keys, values = (normal_like(0, name, (6, num_kv_heads, 8)).astype(np.float64) for name in "kv")
    expected = np.zeros_like(queries)
    for token in range(6):
        for head in range(num_heads):
            shared = head // (num_heads // num_kv_heads)
            weights = np.exp(keys[: token + 1, shared] @ queries[token, head] / math.sqrt(8))
            expected[token, head] = weights / weights.sum() @ values[: token + 1, shared]

    found = reference.attention(*(array.astype(np.float32) for array in (queries, keys, values)))

    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_softmax_survives_large_scores() -> None:
    scores = np.array([[1e4, 1e4, -np.inf]], np.float32)

    assert reference.softmax(scores).tolist() == [[0.5, 0.5, 0.0]]


def test_gelu_is_the_tanh_approximation_and_not_the_exact_one() -> None:
    x = np.linspace(-8, 8, 1001)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = 0.5 * x * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    found = reference.gelu(x.astype(np.float32))

    assert np.abs(found - tanh).max() < 1e-6
    assert np.abs(found - exact).max() > 1e-4


@pytest.mark.parametrize("token_ids", [[], [[2, 3]], [2.5], ["2"]])
def test_reference_refuses_what_is_no_list_of_ids(token_ids: Any) -> None:
    with pytest.raises(PromptError, match="give a flat list of token ids"):
        reference.logits(toy_source(), token_ids)


@pytest.mark.parametrize("wrong", [-1, 768])
def test_reference_refuses_an_id_outside_the_vocabulary(wrong: int) -> None:
    with pytest.raises(PromptError, match=f"token id {wrong} is outside the vocabulary; give ids from 0 to 767"):
        reference.logits(toy_source(), [2, wrong])


def test_reference_refuses_more_tokens_than_the_context() -> None:
    with pytest.raises(CapacityError, match="1025 tokens do not fit the model's context of 1024"):
        reference.logits(toy_source(), [2] * 1025)
