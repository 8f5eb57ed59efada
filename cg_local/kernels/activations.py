"""Everything between two matrix products: normalisation, rotation, gate, and the layouts that a product reads.

This file owns the arithmetic of single tokens. It does not know weights or pages. Invariant: each token's result is
computed by the same operations in the same order whatever else is in the batch.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from cg_local.kernels.activation_groups import (
    EXP_COEFFICIENTS,
    EXP_LIMIT,
    GELU_CUBIC,
    GELU_FACTOR,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ROUNDING,
    address_of,
    group_places,
    quantize_normalized,
    quantize_plain,
)
from cg_local.kernels.bits import float32_from_bits
from cg_local.packing import GROUP

# tanh-GELU: x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))). Source: google/gemma_pytorch, gemma/model.py,
# F.gelu(approximate="tanh"), rewritten with tanh(u) = 2 / (1 + exp(-2u)) - 1.
_GELU_FACTOR, _GELU_CUBIC = np.float32(GELU_FACTOR), np.float32(GELU_CUBIC)
_LOG2_E, _EXP_LIMIT, _ROUNDING = np.float32(LOG2_E), np.float32(EXP_LIMIT), np.float32(ROUNDING)
_LN2_HIGH, _LN2_LOW = np.float32(LN2_HIGH), np.float32(LN2_LOW)
_EXP_5, _EXP_4, _EXP_3, _EXP_2, _EXP_1, _EXP_0 = (np.float32(coefficient) for coefficient in EXP_COEFFICIENTS)
_ONE = np.float32(1.0)


@njit(inline="always")
def round_even(x):
    """Return float32 x, |x| < 2**22, rounded to an integer, ties to even; np.rint would be a call each time."""
    return (x + _ROUNDING) - _ROUNDING


@njit(inline="always")
def exp32(x):
    """Return exp(x) for float32 x clamped to [-87, 87]; relative error below 2e-7. Vectorizes, unlike math.exp."""
    x = min(max(x, -_EXP_LIMIT), _EXP_LIMIT)
    n = round_even(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_EXP_5 * r + _EXP_4) * r + _EXP_3) * r + _EXP_2) * r + _EXP_1) * r + _EXP_0
    power = float32_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))
    return (p * r * r + r + _ONE) * power


@njit(inline="always")
def gelu_tanh(x):
    """Return the tanh approximation of GELU, the activation of every Gemma model."""
    return x / (_ONE + exp32(_GELU_FACTOR * (x + _GELU_CUBIC * x * x * x)))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def rms_norm(x, gain, eps, out):
    """Scale each row to unit root mean square, then by the gain.

    Args:
        x: float32 [num_tokens, hidden_size].
        gain: float32 [hidden_size]; 1 + the stored weight.
        eps: float32, added to the mean square; 1e-6 in CodeGemma.
        out: float32 [num_tokens, hidden_size], fully written.

    Source: google/gemma_pytorch, gemma/model.py, RMSNorm.
    """
    hidden_size = x.shape[1]
    for token in range(x.shape[0]):
        square = np.float32(0)
        for column in range(hidden_size):
            square += x[token, column] * x[token, column]
        scale = np.float32(1) / np.sqrt(square / np.float32(hidden_size) + eps)
        for column in range(hidden_size):
            out[token, column] = x[token, column] * scale * gain[column]


@njit(nogil=True, cache=True)
def rope(x, cosine, sine):
    """Rotate each head's halves by its position's angles, in place.

    Args:
        x: float32 [num_tokens, num_heads, head_dim].
        cosine, sine: float32 [num_tokens, head_dim // 2]; of position / rope_theta ** (2 i / head_dim).

    The pairs are (i, i + head_dim / 2). Source: google/gemma_pytorch, gemma/model.py, apply_rotary_emb.
    """
    num_heads, half = x.shape[1], x.shape[2] // 2
    for token in range(x.shape[0]):
        for head in range(num_heads):
            for i in range(half):
                first, second = x[token, head, i], x[token, head, i + half]
                x[token, head, i] = first * cosine[token, i] - second * sine[token, i]
                x[token, head, i + half] = second * cosine[token, i] + first * sine[token, i]


@njit(nogil=True, cache=True)
def mix_columns(x):
    """Multiply each head by a Hadamard matrix over its root of size, in place; twice gives the head back.

    Scores are the same when q and k are both mixed. Large columns are spread over all, so that a group of columns needs
    a smaller scale. Heads whose size is no power of two are mixed in blocks of the largest one that divides it.

    Args:
        x: float32 [num_tokens, num_heads, head_dim].

    Source of the idea: QuaRot, Ashkboos et al., arXiv 2404.00456, section 4.
    """
    head_dim = x.shape[2]
    size = head_dim & -head_dim
    factor = np.float32(1 / np.sqrt(np.float64(size)))
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            values = x[token, head]
            half = 1
            while half < size:
                for first in range(0, head_dim, 2 * half):
                    for i in range(first, first + half):
                        low, high = values[i], values[i + half]
                        values[i] = low + high
                        values[i + half] = low - high
                half *= 2
            for i in range(head_dim):
                values[i] *= factor


@njit(parallel=True, nogil=True, cache=True)
def geglu(gate, up, out):
    """Write gelu_tanh(gate) * up; float32 [num_tokens, intermediate_size] each, out may be gate."""
    for token in prange(gate.shape[0]):
        for column in range(gate.shape[1]):
            out[token, column] = gelu_tanh(gate[token, column]) * up[token, column]


@njit(inline="always")
def inverse_rms(values, eps):
    """Return 1 / sqrt(mean square + eps) of a row; its length is a multiple of GROUP.

    The sum runs in GROUP lanes and then over them in order: vectors without leave to reorder, so one token and many
    give the same bits.
    """
    lanes = np.zeros(GROUP, np.float32)
    for first in range(0, values.shape[0], GROUP):
        for lane in range(GROUP):
            lanes[lane] += values[first + lane] * values[first + lane]
    square = np.float32(0)
    for lane in range(GROUP):
        square += lanes[lane]
    return _ONE / np.sqrt(square / np.float32(values.shape[0]) + eps)


@njit(nogil=True, cache=True)
def quantize_activations(x, gain, eps, codes, scales, sums, corrections):
    """Round activations to int8 by groups of 32 columns, in the block layout of `matmul.py`; normalize them before.

    Runs on the calling thread: waking another one takes longer than one token, and many tokens take a hundredth of the
    product that follows.

    Args:
        x: float32 [num_tokens, columns].
        gain: float32 [columns], the rows are normalized as `rms_norm` does; [0], they are taken as they are.
        eps: float32, of the norm.
        codes: int8 [blocks, groups, T, 32], scales: float32 [blocks, groups, T], sums: int32 [blocks, groups, T],
            corrections: int32 [blocks, groups, T, 4]; fully written, with zeros for the tokens that fill up the last
            block.
    """
    num_tokens, groups, tokens = x.shape[0], codes.shape[1], codes.shape[2]
    is_normalized = gain.shape[0] > 0
    zeros = np.zeros(GROUP, np.float32)
    parts = address_of(codes), address_of(scales), address_of(sums), address_of(corrections)
    for row in range(codes.shape[0] * tokens):
        source = x.ctypes.data + row * x.shape[1] * 4
        scale = inverse_rms(x[row], eps) if is_normalized and row < num_tokens else _ONE
        for group in range(groups):
            number = (row // tokens * groups + group) * tokens + row % tokens
            code, code_scale, total, correction = group_places(parts, number)
            values = source + group * (4 * GROUP)
            if row >= num_tokens:
                quantize_plain(zeros.ctypes.data, code, code_scale, total, correction)
            elif is_normalized:
                gains = gain.ctypes.data + group * (4 * GROUP)
                quantize_normalized(values, scale, gains, code, code_scale, total, correction)
            else:
                quantize_plain(values, code, code_scale, total, correction)


@njit(parallel=True, nogil=True, cache=True)
def block_activations(x, out):
    """Copy float32 activations [num_tokens, columns] to [blocks, columns, T], zeros behind the last token."""
    num_tokens = x.shape[0]
    blocks, columns, tokens = out.shape
    for row in prange(blocks * tokens):
        block, token = row // tokens, row % tokens
        for column in range(columns):
            out[block, column, token] = x[row, column] if row < num_tokens else np.float32(0)
