"""Figures of tokens equal their formulas in float64, whatever the slabs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from cg_local.quant import divergence
from cg_local.quant.divergence import ColumnSlab, HeadLogits, RowLogits, TokenFigures, compare

Floats = NDArray[np.float32]


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln softmax, the plain way."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def plain_figures(z: Floats, y: Floats, true_ids: NDArray[np.int64]) -> TokenFigures:
    """Return the figures by their definitions."""
    p, q = log_softmax(z.astype(np.float64)), log_softmax(y.astype(np.float64))
    rows = np.arange(len(z))
    return TokenFigures(
        kl=(np.exp(p) * (p - q)).sum(axis=1),
        is_same_top=z.argmax(axis=1) == y.argmax(axis=1),
        reference_loss=-p[rows, true_ids],
        model_loss=-q[rows, true_ids],
    )


def random_logits(seed: int, scale: float, shape: tuple[int, int] = (40, 300)) -> Floats:
    """Return normal logits."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@dataclass
class Narrow:
    """Logits in slabs of so many columns."""

    logits: Floats
    slab: int

    @property
    def num_tokens(self) -> int:
        return len(self.logits)

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[1]

    def columns(self, start: int, stop: int) -> ColumnSlab:
        assert stop - start <= self.slab
        return RowLogits(self.logits, self.vocab_size).columns(start, stop)


@pytest.mark.parametrize("slab", [1, 7, 299, 300, 1000])
@pytest.mark.parametrize("scale", [0.1, 8.0])
def test_figures_equal_their_definitions_in_any_slabs(slab: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "BLOCK_BYTES", 8 * 7 * 11)  # blocks of a few tokens
    z = random_logits(1, scale)
    y = z + random_logits(2, 0.3)
    true_ids = np.random.default_rng(3).integers(0, 300, 40)
    found, expected = compare(Narrow(z, slab), Narrow(y, 64), true_ids), plain_figures(z, y, true_ids)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.reference_loss, expected.reference_loss, rtol=1e-12)
    np.testing.assert_allclose(found.model_loss, expected.model_loss, rtol=1e-12)
    assert (found.is_same_top == expected.is_same_top).all()
    difference = np.exp(-expected.model_loss) - np.exp(-expected.reference_loss)
    np.testing.assert_allclose(found.probability_difference, difference, rtol=1e-9, atol=1e-15)


def test_two_symbols_have_their_closed_form() -> None:
    p, q = 0.8, 0.3
    z, y = (np.array([[math.log(share), math.log(1 - share)]], np.float32) for share in (p, q))
    found = compare(RowLogits(z, 2), RowLogits(y, 2), np.array([1]))
    assert found.kl[0] == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-6)
    assert found.reference_loss[0] == pytest.approx(-math.log(0.2), rel=1e-6)
    assert found.probability_difference[0] == pytest.approx(0.7 - 0.2, rel=1e-6)
    assert not found.is_same_top[0]


def test_model_against_itself_diverges_by_nothing() -> None:
    z = random_logits(5, 20.0)
    found = compare(Narrow(z, 13), Narrow(z, 50), np.zeros(40, np.int64))
    assert (found.kl == 0).all()
    assert found.is_same_top.all()


def test_constant_added_to_all_logits_changes_nothing() -> None:
    z = np.round(random_logits(6, 4.0) * 256) / np.float32(256)  # so that the sum below is exact
    found = compare(RowLogits(z, 300), RowLogits(z + np.float32(64), 300), np.zeros(40, np.int64))
    np.testing.assert_allclose(found.kl, 0, atol=1e-12)


def test_far_apart_logits_stay_finite() -> None:
    z, y = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    z[0, 0], y[0, 3] = 500, 500
    found = compare(Narrow(z, 1), Narrow(y, 1), np.array([3]))
    assert found.kl[0] == pytest.approx(500)
    assert found.reference_loss[0] == pytest.approx(500)


def test_columns_of_padding_do_not_count() -> None:
    z = random_logits(7, 3.0)
    padded = np.concatenate([z, np.full((40, 5), 99, np.float32)], axis=1)
    found = compare(RowLogits(z, 300), RowLogits(padded, 300), np.zeros(40, np.int64))
    assert (found.kl == 0).all()


def test_head_is_read_slab_by_slab_and_gives_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    states, head = random_logits(8, 1.0, (5, 16)), random_logits(9, 1.0, (100, 16))
    reads: list[tuple[int, int]] = []

    class Source:
        tensor_names = ("model.embed_tokens.weight",)

        def rows(self, name: str, start: int, stop: int) -> Floats:
            assert name == "model.embed_tokens.weight"
            reads.append((start, stop))
            return head[start:stop]

    monkeypatch.setattr("cg_local.quant.hidden_states.SLAB_BYTES", 30 * 4 * 16)
    ours = HeadLogits(states, Source(), 90)  # type: ignore[arg-type]
    found = compare(ours, RowLogits(states @ head.T, 90), np.zeros(5, np.int64))
    np.testing.assert_allclose(found.kl, 0, atol=1e-10)
    assert reads == [(0, 30), (30, 60), (60, 90)]


def test_different_places_are_no_comparison() -> None:
    z = random_logits(1, 1.0)
    with pytest.raises(ValueError, match="differ"):
        compare(RowLogits(z, 300), RowLogits(z[:3], 300), np.zeros(40, np.int64))
