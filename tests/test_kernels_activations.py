"""Proves the arithmetic between matrix products against float64 and against the reference, with derived bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_cases import EPS, corrections
from numba import njit
from numpy.typing import NDArray

from cg_local import kernels, reference
from cg_local.kernels.activations import exp32, gelu_tanh
from cg_local.packing import GROUP

Floats = NDArray[np.float32]
T = kernels.BLOCK_TOKENS


@njit
def exp_all(values, out):
    for i in range(values.size):
        out[i] = exp32(values[i])


@njit
def gelu_all(values, out):
    for i in range(values.size):
        out[i] = gelu_tanh(values[i])


def exact_gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """x / (1 + exp(-2 u)), which equals x / 2 * (1 + tanh u) without its cancellation."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tolerance(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponent's 5 roundings act through exp as absolute errors; exp32 adds 2e-7, sum and quotient 2 roundings.

    Where the exponent is clamped at 87 the value is at most |x| exp(-87) away from the exact one.
    """
    exponent = np.abs(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    relative = 2e-7 + (6 * np.minimum(exponent, 87) + 3) * EPS
    return relative * np.abs(exact_gelu(x)) + np.abs(x) * math.exp(-86.9)


def gelu_inputs() -> Floats:
    magnitudes = np.geomspace(1e-30, 1e4, 20000)
    return np.concatenate([np.linspace(-30, 30, 100001), magnitudes, -magnitudes, [0]]).astype(np.float32)


def readonly(values: Floats) -> Floats:
    """Gains are mapped read-only in the engine; the same type here shares its compiled code."""
    values.flags.writeable = False
    return values


def test_exp_is_within_2e_7_over_its_whole_range() -> None:
    values = np.linspace(-87, 87, 500001).astype(np.float32)
    out = np.empty_like(values)

    exp_all(values, out)

    expected = np.exp(values.astype(np.float64))
    assert np.abs(out / expected - 1).max() < 2e-7


def test_exp_clamps_its_argument_at_87() -> None:
    values = np.array([-1e30, -88, -87, 87, 88, 1e30], np.float32)
    out = np.empty_like(values)

    exp_all(values, out)

    np.testing.assert_array_equal(out[[0, 1, 4, 5]], out[[2, 2, 3, 3]])


def test_exp_of_zero_is_exactly_one() -> None:
    out = np.empty(2, np.float32)

    exp_all(np.array([0.0, -0.0], np.float32), out)

    assert out.tolist() == [1, 1]


def test_gelu_is_within_its_derived_bound_over_the_whole_range() -> None:
    values = gelu_inputs()
    out = np.empty_like(values)

    gelu_all(values, out)

    exact = values.astype(np.float64)
    assert (np.abs(out - exact_gelu(exact)) <= gelu_tolerance(exact)).all()


def test_gelu_of_enormous_values_is_zero_or_the_value() -> None:
    values = np.array([-1e30, -1e15, 1e15, 1e30], np.float32)
    out = np.empty_like(values)

    gelu_all(values, out)

    assert (np.abs(out - np.maximum(values, 0)) <= 1e-7 * np.abs(values)).all()


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_geglu_equals_gelu_of_the_gate_times_up(num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    gate, up = (random.normal(0, 3, (num_tokens, 512)).astype(np.float32) for _ in range(2))
    out = np.empty_like(gate)

    kernels.geglu(gate, up, out)

    exact, factor = gate.astype(np.float64), up.astype(np.float64)
    tolerance = (gelu_tolerance(exact) + EPS * np.abs(exact_gelu(exact))) * np.abs(factor) * (1 + 1e-6)
    assert (np.abs(out - exact_gelu(exact) * factor) <= tolerance).all()


def test_geglu_may_write_over_its_gate() -> None:
    gate, up = np.random.default_rng(0).normal(0, 3, (2, 3, 64)).astype(np.float32)
    apart = np.empty_like(gate)
    kernels.geglu(gate, up, apart)

    kernels.geglu(gate, up, gate)

    np.testing.assert_array_equal(gate, apart)


@pytest.mark.parametrize("magnitude", [1e-8, 1e-3, 1, 1e4])
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_rms_norm_equals_float64(num_tokens: int, magnitude: float) -> None:
    random = np.random.default_rng(3)
    x = (random.standard_normal((num_tokens, 256)) * magnitude).astype(np.float32)
    gain = readonly(random.uniform(0.5, 1.5, 256).astype(np.float32))
    out = np.empty_like(x)

    kernels.rms_norm(x, gain, np.float32(1e-6), out)

    exact = x.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + float(np.float32(1e-6))) * gain
    # A sum of 256 positive squares is within 257 roundings; the root halves that; 6 more roundings follow.
    assert (np.abs(out - expected) <= (257 / 2 + 6) * EPS * np.abs(expected)).all()


def test_rms_norm_equals_the_reference() -> None:
    random = np.random.default_rng(4)
    x = random.standard_normal((9, 256)).astype(np.float32)
    weight = random.normal(0, 0.1, 256).astype(np.float32)
    out = np.empty_like(x)

    kernels.rms_norm(x, readonly(1 + weight), np.float32(1e-6), out)

    np.testing.assert_allclose(out, reference.rms_norm(x, weight, 1e-6), rtol=140 * EPS)


def test_rms_norm_of_a_zero_row_is_zero() -> None:
    out = np.ones((2, 256), np.float32)

    kernels.rms_norm(np.zeros_like(out), readonly(np.ones(256, np.float32)), np.float32(1e-6), out)

    assert not out.any()


def test_rms_norm_of_a_row_does_not_depend_on_its_neighbours() -> None:
    random = np.random.default_rng(5)
    x, gain = random.standard_normal((6, 256)).astype(np.float32), readonly(np.ones(256, np.float32))
    together, alone = np.empty_like(x), np.empty_like(x)
    kernels.rms_norm(x, gain, np.float32(1e-6), together)

    for row in range(6):
        kernels.rms_norm(x[row : row + 1], gain, np.float32(1e-6), alone[row : row + 1])

    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("num_heads", [1, 6])
def test_rope_equals_the_reference_bit_for_bit(num_heads: int) -> None:
    x = np.random.default_rng(6).standard_normal((5, num_heads, 64)).astype(np.float32)
    cosine, sine = reference.rotary_table(np.array([0, 1, 2, 500, 8191]), 64, 10000.0)
    # Both round each product and their difference once.
    expected = reference.rope(x, cosine, sine)

    kernels.rope(x, cosine, sine)

    np.testing.assert_array_equal(x, expected)


NO_GAIN = readonly(np.zeros(0, np.float32))


def quantized(x: Floats, tokens: int, gain: Floats = NO_GAIN) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """Run the kernel on arrays full of garbage, as a workspace hands them out."""
    shape = -(-len(x) // tokens), x.shape[1] // GROUP, tokens
    codes = np.full((*shape, GROUP), 99, np.int8)
    scales, sums = np.full(shape, 9, np.float32), np.full(shape, 9, np.int32)
    found = np.full((*shape, GROUP // 8), 99, np.int32)
    kernels.quantize_activations(x, gain, np.float32(1e-6), codes, scales, sums, found)
    np.testing.assert_array_equal(found, corrections(codes))
    return codes, scales, sums


def by_rows(blocked: NDArray[np.generic], num_tokens: int) -> NDArray[np.generic]:
    """[blocks, groups, T, ...] -> [num_tokens, groups, ...]."""
    rows = blocked.swapaxes(1, 2)
    return rows.reshape(-1, *rows.shape[2:])[:num_tokens]


@pytest.mark.parametrize("head_dim", [1, 16, 48, 64, 256])
def test_mixed_columns_are_a_product_with_hadamards_matrix_in_float64(head_dim: int) -> None:
    x = np.random.default_rng(1).normal(size=(3, 2, head_dim)).astype(np.float32)
    size, hadamard = math.gcd(head_dim, 256), np.ones((1, 1))
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    expected = (x.reshape(-1, size).astype(np.float64) @ hadamard / math.sqrt(size)).reshape(x.shape)
    found = x.copy()

    kernels.mix_columns(found)

    # Each of the log2(size) + 1 steps rounds once; what is summed is not larger than sqrt(size) of the result's scale.
    np.testing.assert_allclose(found, expected, rtol=0, atol=9 * 6e-8 * np.abs(x).max() * math.sqrt(size))
    kernels.mix_columns(found)
    np.testing.assert_allclose(found, x, rtol=0, atol=2e-6 * np.abs(x).max())


@pytest.mark.parametrize(("num_tokens", "tokens"), [(1, 1), (3, T), (9, T)])
def test_quantized_activations_equal_numpys_rounding(num_tokens: int, tokens: int) -> None:
    x = np.random.default_rng(num_tokens).normal(0, 5, (num_tokens, 256)).astype(np.float32)
    groups = x.reshape(num_tokens, -1, GROUP)
    largest = np.abs(groups).max(axis=2)

    codes, scales, _ = quantized(x, tokens)

    expected = np.rint(groups * (np.float32(127) / largest)[:, :, None])
    np.testing.assert_array_equal(by_rows(codes, num_tokens), expected)
    np.testing.assert_array_equal(by_rows(scales, num_tokens), largest / np.float32(127))


def test_quantized_activations_are_within_half_a_step() -> None:
    x = np.random.default_rng(8).standard_cauchy((5, 512)).astype(np.float32)

    codes, scales, _ = quantized(x, T)

    restored = by_rows(codes, 5).astype(np.float64) * by_rows(scales, 5)[:, :, None]
    # The quotient 127 / largest and the product with it are rounded: up to 127 * 2 EPS of a step beside the half.
    step = by_rows(scales, 5).astype(np.float64)[:, :, None]
    assert (np.abs(restored - x.reshape(5, -1, GROUP)) <= step * (0.5 + 127 * 4 * EPS)).all()


def test_sums_of_quantized_activations_are_the_sums_of_their_codes() -> None:
    x = np.random.default_rng(9).normal(0, 5, (6, 256)).astype(np.float32)

    codes, _, sums = quantized(x, T)

    np.testing.assert_array_equal(sums, codes.sum(axis=3, dtype=np.int32))


def test_quantized_activations_round_ties_to_even() -> None:
    x = np.zeros((1, GROUP), np.float32)
    x[0, :7] = 127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5

    codes, _, _ = quantized(x, 1)

    assert codes[0, 0, 0, :7].tolist() == [127, 0, 2, 2, 0, -2, 126]


def test_zero_activations_have_zero_codes_scales_and_sums() -> None:
    assert not any(array.any() for array in quantized(np.zeros((2, 64), np.float32), T))


def test_quantized_activations_behind_the_last_token_are_zero() -> None:
    codes, scales, sums = quantized(np.ones((T + 1, 64), np.float32), T)

    assert not any(array[1, :, 1:].any() for array in (codes, scales, sums))


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_normalized_and_quantized_activations_equal_the_two_steps(num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    x = random.normal(0, 5, (num_tokens, 256)).astype(np.float32)
    gain = readonly(random.uniform(0.5, 2, 256).astype(np.float32))
    expected = reference.rms_norm(x, gain - 1, 1e-6)
    tokens = 1 if num_tokens == 1 else T

    codes, scales, sums = quantized(x, tokens, gain)

    # Norms that differ by rounding move a code by at most one.
    separate = quantized(expected, tokens)
    np.testing.assert_allclose(scales, separate[1], rtol=140 * EPS)
    assert np.abs(codes.astype(int) - separate[0]).max() <= 1
    assert (codes != separate[0]).mean() < 1e-3
    np.testing.assert_array_equal(sums, codes.sum(axis=3, dtype=np.int32))


@pytest.mark.parametrize("gain", [NO_GAIN, readonly(np.full(256, 1.5, np.float32))], ids=["plain", "normalized"])
def test_quantized_activations_do_not_depend_on_their_neighbours(gain: Floats) -> None:
    x = np.random.default_rng(3).normal(0, 5, (9, 256)).astype(np.float32)
    codes, scales, sums = quantized(x, T, gain)

    for row in range(9):
        alone = quantized(x[row : row + 1], 1, gain)
        for array, one in zip((codes, scales, sums), alone, strict=True):
            np.testing.assert_array_equal(by_rows(array, 9)[row], by_rows(one, 1)[0])


@pytest.mark.parametrize(("num_tokens", "tokens"), [(1, 1), (2, T), (9, T)])
def test_blocked_activations_are_the_same_values_with_zeros_behind_the_last_token(num_tokens: int, tokens: int) -> None:
    x = np.random.default_rng(num_tokens).standard_normal((num_tokens, 96)).astype(np.float32)
    num_blocks = -(-num_tokens // tokens)
    out = np.full((num_blocks, 96, tokens), np.nan, np.float32)

    kernels.block_activations(x, out)

    rows = out.swapaxes(1, 2).reshape(-1, 96)
    np.testing.assert_array_equal(rows, np.pad(x, ((0, len(rows) - num_tokens), (0, 0))))
