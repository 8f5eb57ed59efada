"""Products with rounded factors: they and their gradients against float64 arithmetic on rounded inputs."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402

from cg_local.training import model, products  # noqa: E402


def rounded(values: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(values).astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize(("left", "right"), [((3, 4, 5), (5, 6)), ((2, 3, 4, 5), (2, 3, 5, 6)), ((4, 5), (5, 6))])
def test_rounded_product_and_gradients(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=left).astype(np.float32), rng.normal(size=right).astype(np.float32)
    weight = rng.normal(size=(*left[:-1], right[-1])).astype(np.float32)
    with jax.default_matmul_precision(products.ROUNDED_PRECISION):
        out, pull = jax.vjp(products.matmul, a, b)
        of_a, of_b = pull(jnp.asarray(weight))
    np.testing.assert_allclose(out, rounded(a) @ rounded(b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_a, rounded(weight) @ np.swapaxes(rounded(b), -1, -2), rtol=1e-5, atol=1e-5)
    flat, grad = (rounded(a), rounded(weight))
    if len(right) == 2:
        flat, grad = flat.reshape(-1, left[-1]), grad.reshape(-1, right[-1])
    np.testing.assert_allclose(of_b, np.swapaxes(flat, -1, -2) @ grad, rtol=1e-5, atol=1e-5)
    assert {out.dtype, of_a.dtype, of_b.dtype} == {jnp.dtype(jnp.float32)}


def test_float32_product_is_jax_own() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
    assert np.array_equal(products.matmul(a, b), jnp.matmul(a, b))


def test_rounded_losses_stay_near_the_exact_ones() -> None:
    arch = model.Architecture(vocab_size=512, intermediate_size=256, num_layers=2)
    params, ids = model.initial_params(arch, 0), np.random.default_rng(2).integers(0, 512, (2, 64))
    losses = lambda: model.batch_losses(params, arch, ids, np.ones_like(ids), np.arange(64) + 0 * ids)  # noqa: E731
    exact = np.asarray(losses())
    with jax.default_matmul_precision(products.ROUNDED_PRECISION):
        found = np.asarray(losses())
    assert 0 < np.abs(found - exact).max() < 0.05


def test_losses_are_the_same_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    hidden, embedding = rng.normal(size=(9, 16)).astype(np.float32), rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(0, 32, 9)
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr("jax.default_backend", lambda backend=backend: backend)
        found.append(jax.vjp(lambda h, e: model.token_losses(h, e, targets), hidden, embedding))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    for one, other in zip(*(pull(jnp.ones(9)) for _, pull in found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
