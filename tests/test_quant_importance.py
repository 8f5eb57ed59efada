"""Statistics of inputs against plain float64 computations, and the packs that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save
from toy_models import MHA, MQA, write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, HEAD, matrix_shapes
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.importance import (
    CAPPED_SHARE,
    METADATA_KEY,
    RANK,
    VERSION,
    ImportancePack,
    InputStatistics,
    capped_rows,
    input_name,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
REMEDY = "make it again with `cg-local calibrate`"
LAYER = "model.layers.1"


def correlated(columns: int, num_tokens: int, seed: int = 0) -> Floats:
    """Inputs whose mean product has eigenvalues a factor of 2 apart, in directions of chance."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    lengths = np.maximum(2.0 ** -np.arange(columns), 1e-4)
    # Coordinates without correlation, so that the axes are the eigenvectors exactly.
    coordinates, _ = np.linalg.qr(rng.standard_normal((num_tokens, columns)))
    return (coordinates * np.sqrt(lengths * num_tokens) @ axes.T).astype(np.float32)


def mean_product(inputs: list[Floats]) -> Doubles:
    """The mean of x'x with the longest rows shortened, as the definition says."""
    x = np.concatenate(inputs).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    cap = np.quantile(np.concatenate([np.linalg.norm(part[1:].astype(np.float64), axis=1) for part in inputs]), 0.999)
    shortened = x * np.where(lengths > cap, cap / np.maximum(lengths, 1e-300), 1.0)[:, None]
    product: Doubles = shortened.T @ shortened / len(x)
    return product


@pytest.mark.parametrize("columns", [8, 64, 200])
def test_diagonal_and_directions_together_have_the_mean_products_diagonal(columns: int) -> None:
    rng = np.random.default_rng(columns)
    inputs = [rng.standard_normal((n, columns)).astype(np.float32) * np.float32(3) for n in (300, 1, 77)]
    found = InputStatistics.of(inputs)
    np.testing.assert_allclose(found.mean_square, np.diag(mean_product(inputs)), rtol=2e-5)
    assert found.directions.shape == (columns, min(columns, RANK))
    assert (found.diagonal >= 0).all()


def test_directions_are_the_first_eigenvectors_up_to_their_sign() -> None:
    inputs = [correlated(96, 400)]
    values, vectors = np.linalg.eigh(mean_product(inputs))
    found = InputStatistics.of(inputs).directions
    for number in range(10):  # further ones are beyond float32's seven digits
        expected = vectors[:, -1 - number] * np.sqrt(values[-1 - number])
        sign = np.sign(expected @ found[:, number])
        np.testing.assert_allclose(sign * found[:, number], expected, atol=2e-4 * np.linalg.norm(expected))
    lengths = np.linalg.norm(found, axis=0)
    assert (np.diff(lengths[:10]) < 0).all()


def test_with_few_columns_directions_are_the_whole_product() -> None:
    inputs = [correlated(24, 100, seed=3)]
    found = InputStatistics.of(inputs)
    diagonal, directions = found.as_doubles
    whole = mean_product(inputs)
    np.testing.assert_allclose(np.diag(diagonal) + directions @ directions.T, whole, atol=1e-6 * whole.max())
    assert diagonal.dtype == directions.dtype == np.float64


def test_long_rows_are_shortened_to_the_length_that_a_thousandth_of_the_others_exceeds() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3000, 16)).astype(np.float32)
    x[[0, 1400]] *= 1000  # the first of each sequence, many more than a thousandth where sequences are short
    x[1500] *= 1000
    plain = np.linalg.norm(x.astype(np.float64), axis=1)
    cap = np.quantile(np.delete(plain, [0, 1400]), 1 - CAPPED_SHARE)
    assert cap < 10  # no long row reaches it
    rows = capped_rows([x[:1400], x[1400:]])
    assert [len(part) for part in rows] == [1400, 1600]
    lengths = np.linalg.norm(np.concatenate(rows).astype(np.float64), axis=1) * np.sqrt(len(x))
    np.testing.assert_allclose(lengths, np.minimum(plain, cap), rtol=1e-6)
    parts = [x[:1400], x[1400:]]
    np.testing.assert_allclose(InputStatistics.of(parts).mean_square, np.diag(mean_product(parts)), rtol=2e-5)


def test_first_rows_are_shortened_however_short_the_sequences() -> None:
    x = correlated(24, 640, seed=6)
    x[::16] *= 1000
    rows = capped_rows(np.split(x, 40))
    lengths = np.linalg.norm(np.concatenate(rows), axis=1)
    assert lengths.max() <= 8 * np.median(lengths)


def test_inputs_that_are_not_finite_are_refused() -> None:
    x = correlated(24, 100, seed=6)
    x[7, 3] = np.inf
    with pytest.raises(QuantizeError, match="not finite"):
        InputStatistics.of([x])


@pytest.mark.parametrize("columns", [8, 2048])
def test_inputs_whose_squares_float32_cannot_hold_are_refused(columns: int) -> None:
    x = np.random.default_rng(columns).standard_normal((4, columns)).astype(np.float32)
    with pytest.raises(QuantizeError, match=r"a layer's inputs are as large as \de\+(19|20): float32 cannot hold the"):
        InputStatistics.of([x * np.float32(1e19), x * np.float32(1e19)])
    found = InputStatistics.of([x * np.float32(1e16), x * np.float32(1e16)])
    assert np.isfinite(found.mean_square).all()


def test_inputs_that_are_always_zero_have_finite_statistics() -> None:
    found = InputStatistics.of([np.zeros((10, 64), np.float32)])
    assert not found.mean_square.any()
    assert np.isfinite(found.directions).all()


@pytest.mark.parametrize(
    ("matrix", "first"),
    [
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("self_attn.k_proj", "self_attn.q_proj"),
        ("self_attn.v_proj", "self_attn.q_proj"),
        ("self_attn.o_proj", "self_attn.o_proj"),
        ("mlp.gate_proj", "mlp.gate_proj"),
        ("mlp.up_proj", "mlp.gate_proj"),
        ("mlp.down_proj", "mlp.down_proj"),
    ],
)
def test_matrices_with_one_input_share_its_statistics(matrix: str, first: str) -> None:
    assert input_name(f"{LAYER}.{matrix}.weight") == f"{LAYER}.{first}.weight"


def test_head_shares_the_embeddings_statistics() -> None:
    assert input_name(HEAD) == input_name(EMBEDDING) == EMBEDDING


def toy_pack(values: Mapping[str, object] = MQA, seed: int = 0, weights: str = "0" * 64) -> ImportancePack:
    """A pack of chance for a toy model, whose weights have this fingerprint."""
    rng, statistics = np.random.default_rng(seed), {}
    for name, (_, columns) in matrix_shapes(ModelConfig.from_dict(values, "toy"), has_separate_head=False).items():
        if input_name(name) == name:
            diagonal = np.exp(rng.standard_normal(columns)).astype(np.float32)
            directions = rng.standard_normal((columns, RANK)).astype(np.float32)
            statistics[name] = InputStatistics(diagonal, directions)
    sensitivities = {EMBEDDING: 9.5, f"{LAYER}.mlp.up_proj.weight": 0.1}
    return ImportancePack(statistics, sensitivities, weights, {"corpus": {"files": []}})


def test_pack_gives_each_matrix_the_statistics_of_its_input() -> None:
    pack = toy_pack()
    assert pack.of(f"{LAYER}.self_attn.v_proj.weight") is pack.statistics[f"{LAYER}.self_attn.q_proj.weight"]
    assert pack.of(HEAD) is pack.statistics[EMBEDDING]


def test_saved_pack_comes_back_bit_by_bit(tmp_path: Path) -> None:
    pack, path = toy_pack(), tmp_path / "importance.safetensors"
    pack.save(path)
    found = ImportancePack.load(path)
    assert found.statistics.keys() == pack.statistics.keys()
    for name, statistics in pack.statistics.items():
        np.testing.assert_array_equal(found.statistics[name].diagonal, statistics.diagonal, strict=True)
        np.testing.assert_array_equal(found.statistics[name].directions, statistics.directions, strict=True)
    assert found.sensitivities == pack.sensitivities
    assert (found.weights, found.document) == (pack.weights, pack.document)
    assert found.digest == pack.digest
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first


def test_digest_follows_statistics_and_sensitivities_but_not_where_they_come_from() -> None:
    pack = toy_pack()
    name = f"{LAYER}.mlp.down_proj.weight"
    one = pack.statistics[name]
    moved = one.directions.copy()
    moved[3, 2] = np.nextafter(moved[3, 2], np.float32(np.inf))
    others = [
        replace(pack, statistics={**pack.statistics, name: InputStatistics(one.diagonal, moved)}),
        replace(pack, statistics={**pack.statistics, name: InputStatistics(one.diagonal * 2, one.directions)}),
        replace(pack, statistics={key: value for key, value in pack.statistics.items() if key != name}),
        replace(pack, sensitivities={**pack.sensitivities, EMBEDDING: 9.6}),
        replace(pack, sensitivities={}),
    ]
    assert len({pack.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert replace(pack, weights="1" * 64, document={"corpus": {}}).digest == pack.digest
    assert toy_pack().digest == pack.digest


def test_pack_fits_the_weights_it_was_made_from_and_no_others(tmp_path: Path) -> None:
    one, two = (write_toy_checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    pack = toy_pack(weights=fingerprint(open_checkpoint(one)))
    assert pack.misfit(open_checkpoint(one)) is None
    other = "it was made for other weights of the same shape (another training or fine-tune)"
    assert pack.misfit(open_checkpoint(two)) == other


def test_pack_of_another_shape_does_not_fit(tmp_path: Path) -> None:
    mha = open_checkpoint(write_toy_checkpoint(tmp_path / "mha", MHA))
    assert toy_pack(MQA).misfit(mha) == (
        "it was made for another model: statistics of 256 inputs for model.layers.0.self_attn.o_proj.weight, 384 needed"
    )
    deeper = open_checkpoint(write_toy_checkpoint(tmp_path / "deeper", {**MQA, "num_hidden_layers": 3}))
    expected = "statistics of no inputs for model.layers.2.self_attn.q_proj.weight, 256 needed"
    assert toy_pack(MQA).misfit(deeper) == f"it was made for another model: {expected}"


ONES = {"m.diagonal": np.ones(4, np.float32), "m.directions": np.ones((4, 2), np.float32)}
TOLD = {"version": VERSION, "weights": "0" * 64, "sensitivities": {}}


def written(path: Path, arrays: Mapping[str, Any] = ONES, told: object = TOLD) -> Path:
    path.write_bytes(save(dict(arrays), {METADATA_KEY: told if isinstance(told, str) else json.dumps(told)}))
    return path


def test_small_pack_by_hand_is_read(tmp_path: Path) -> None:
    assert ImportancePack.load(written(tmp_path / "pack")).statistics["m"].diagonal.tolist() == [1, 1, 1, 1]


def refusal(path: Path) -> str:
    with pytest.raises(QuantizeError) as caught:
        ImportancePack.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        "7",
        "null",
        '"text"',
        "[" * 100_000,
        {"version": VERSION, "weights": "0" * 64},
        {"version": VERSION, "sensitivities": {}},
        {"weights": "0" * 64, "sensitivities": {}},
        {**TOLD, "weights": 7},
        {**TOLD, "sensitivities": []},
        {**TOLD, "sensitivities": {"m": "much"}},
        {**TOLD, "sensitivities": {"m": None}},
        {**TOLD, "sensitivities": {"m": -1.0}},
        {**TOLD, "sensitivities": {"m": float("nan")}},
        {**TOLD, "sensitivities": {"m": float("inf")}},
    ],
    ids=lambda told: str(told)[:40],
)
def test_other_metadata_are_no_importance_pack(tmp_path: Path, told: object) -> None:
    assert refusal(written(tmp_path / "pack", told=told)) == f"not an importance pack; {REMEDY}"


def test_weights_are_no_importance_pack(tmp_path: Path, toy_checkpoint: Callable[[str], Path]) -> None:
    assert refusal(toy_checkpoint("mqa") / "model.safetensors") == f"not an importance pack; {REMEDY}"


def test_pack_of_another_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "pack", told={**TOLD, "version": VERSION + 1})
    assert refusal(path) == f"an importance pack of version {VERSION + 1}, {VERSION} is read; {REMEDY}"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("m.diagonal", np.ones(4, np.float16)),
        ("m.diagonal", np.array([1, 1, -1, 1], np.float32)),
        ("m.diagonal", np.array([1, np.nan, 1, 1], np.float32)),
        ("m.directions", np.full((4, 2), np.inf, np.float32)),
        ("m.diagonal", np.ones((4, 1), np.float32)),
        ("m.directions", np.ones((5, 2), np.float32)),
        ("m.directions", np.ones(4, np.float32)),
    ],
    ids=["float16", "negative", "not a number", "infinite", "matrix", "other width", "vector"],
)
def test_arrays_that_are_no_statistics_are_refused(tmp_path: Path, name: str, array: Any) -> None:
    assert refusal(written(tmp_path / "pack", {**ONES, name: array})) == f"{name} holds no statistics; {REMEDY}"


@pytest.mark.parametrize("missing", ["m.diagonal", "m.directions"])
def test_missing_half_of_statistics_is_refused(tmp_path: Path, missing: str) -> None:
    arrays = {name: array for name, array in ONES.items() if name != missing}
    assert refusal(written(tmp_path / "pack", arrays)) == f"{missing} is missing; {REMEDY}"


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_cut_pack_is_refused(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "pack")
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path).endswith(REMEDY)


def test_missing_pack_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none").lower()
