"""Packed matrices, quantized activations and their float64 products: what the tests of the matrix products share.

This file owns the random and the extreme cases and the oracle. Invariant: the oracle computes in
float64 from unpacked codes, so it shares neither layout nor order of additions with what it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.packing import (
    CODE_BITS,
    CODEBOOK_SIZES,
    GROUP,
    SCALE_GROUPS,
    TILE_ROWS,
    PackedMatrix,
    bfloat16_from_float32,
    dequantize,
    num_tiles,
    pack_codebook,
    pack_codes,
    pack_scales,
)

# Codes, scales, sums and corrections in the kernels' layout.
Blocks = tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]
EPS = 2.0**-24  # half a unit in the last place of float32 just below 1: the largest relative error of one rounding
CODEBOOKS = {
    16: np.array([-63, -50, -40, -31, -23, -15, -8, -2, 3, 9, 16, 24, 32, 41, 51, 63]),
    8: np.array([-63, -37, -20, -6, 7, 22, 41, 63]),
}


@dataclass(frozen=True)
class Codes:
    """Quantized activations by row; the codes' type chooses the product.

    codes int8 or int16 [num_tokens, columns], scales float32 [num_tokens, columns / 32].
    """

    codes: NDArray[np.int8] | NDArray[np.int16]
    scales: NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        return len(self.codes)

    def dequantized(self) -> NDArray[np.float64]:
        return self.codes.astype(np.float64) * np.repeat(self.scales.astype(np.float64), GROUP, axis=1)

    def in_blocks(self, tokens: int) -> Blocks:
        """Return codes, scales, sums and corrections as the kernels take them, blocks of `tokens` filled with zeros."""
        missing = -self.num_tokens % tokens
        codes = np.pad(self.codes, ((0, missing), (0, 0))).reshape(-1, tokens, self.codes.shape[1] // GROUP, GROUP)
        scales = np.pad(self.scales, ((0, missing), (0, 0))).reshape(-1, tokens, self.scales.shape[1])
        codes, scales = np.ascontiguousarray(codes.swapaxes(1, 2)), np.ascontiguousarray(scales.swapaxes(1, 2))
        return codes, scales, codes.sum(axis=3, dtype=np.int32), corrections(codes)

    def in_int16_blocks(self, tokens: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Return int16 codes and scales in the kernels' layout: columns 4k..4k+3 in the order 0, 2, 1, 3."""
        codes, scales, *_ = self.in_blocks(tokens)
        quads = codes.reshape(*codes.shape[:3], GROUP // 4, 4)[..., [0, 2, 1, 3]]
        return np.ascontiguousarray(quads).reshape(codes.shape).astype(np.int16), scales


def corrections(codes: NDArray[np.signedinteger]) -> NDArray[np.int32]:
    """Return -64 times the sums of the columns 0, 1, 4, 5 and 2, 3, 6, 7 of each 8, as pairs of int16."""
    pairs = codes.reshape(*codes.shape[:3], GROUP // 8, 2, 2, 2).astype(np.int64).sum(axis=(4, 6))
    return np.ascontiguousarray((-64 * pairs).astype(np.int16)).view(np.int32)[..., 0]


def random_codes(
    random: np.random.Generator, num_tokens: int, columns: int, *, is_exact: bool = False, is_int16: bool = False
) -> Codes:
    """Draw activations; is_exact: scales are 1 and codes small enough that short float sums are exact."""
    limit = 127 if not is_int16 else 254 if is_exact else 32639
    codes = random.integers(-limit, limit + 1, (num_tokens, columns)).astype(np.int16 if is_int16 else np.int8)
    shape = num_tokens, columns // GROUP
    return Codes(codes, np.ones(shape, np.float32) if is_exact else random.uniform(0, 3, shape).astype(np.float32))


def random_matrix(
    format: str, random: np.random.Generator, shape: tuple[int, int], *, is_exact: bool = False
) -> PackedMatrix:
    """Draw a packed matrix over the whole range of its codes and scales, subnormal float16 scales among them."""
    rows, columns = shape
    if format == "bf16":
        values = random.integers(-64, 65, shape) if is_exact else random.standard_normal(shape)
        codes = bfloat16_from_float32(values.astype(np.float32))
        return PackedMatrix(format, shape, {"codes": pack_codes(format, codes)})

    def halves(groups: int) -> NDArray[np.float16]:
        magnitudes = 2.0 ** random.integers(-24, 3, (rows, groups)) * random.uniform(1, 2, (rows, groups))
        return np.ones((rows, groups), np.float16) if is_exact else magnitudes.astype(np.float16)

    if format == "i8g64":
        codes = random.integers(-127, 128, shape).astype(np.int8)
        scales = pack_scales(halves(columns // 64))
        return PackedMatrix(format, shape, {"codes": pack_codes(format, codes), "scales": scales})
    codes = random.integers(0, 2 ** CODE_BITS[format], shape).astype(np.uint8)
    scales = random.integers(-127, 128, (rows, columns // SCALE_GROUPS[format])).astype(np.int8)
    parts = {
        "codes": pack_codes(format, codes),
        "scales": pack_scales(np.ones_like(scales) if is_exact else scales),
        "super_scales": pack_scales(halves(columns // 256)),
    }
    return PackedMatrix(format, shape, with_codebook(format, parts))


def with_codebook(format: str, parts: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add the part that some formats alone have."""
    if format not in CODEBOOK_SIZES:
        return parts
    return {**parts, "codebook": pack_codebook(CODEBOOKS[CODEBOOK_SIZES[format]])}


def extreme_matrix(format: str, shape: tuple[int, int], sign: int) -> PackedMatrix:
    """Return a matrix whose every code is the format's largest or smallest, with scales of 1."""
    rows, columns = shape
    if format == "bf16":
        codes = bfloat16_from_float32(np.full(shape, sign * 127, np.float32))
        return PackedMatrix(format, shape, {"codes": pack_codes(format, codes)})
    if format == "i8g64":
        codes = np.full(shape, sign * 127, np.int8)
        scales = pack_scales(np.ones((rows, columns // 64), np.float16))
        return PackedMatrix(format, shape, {"codes": pack_codes(format, codes), "scales": scales})
    largest = 2 ** CODE_BITS[format] - 1
    parts = {
        "codes": pack_codes(format, np.full(shape, largest if sign > 0 else 0, np.uint8)),
        "scales": pack_scales(np.ones((rows, columns // SCALE_GROUPS[format]), np.int8)),
        "super_scales": pack_scales(np.ones((rows, columns // 256), np.float16)),
    }
    return PackedMatrix(format, shape, with_codebook(format, parts))


def extreme_weight(format: str, sign: int) -> int:
    """Return the weight of every element of `extreme_matrix`."""
    integers = {"i6g32": 31 if sign > 0 else -32}
    return 63 * sign if format in CODEBOOK_SIZES else integers.get(format, 127 * sign)


def weight_arguments(matrix: PackedMatrix) -> tuple[NDArray[np.generic], ...]:
    """Return the parts in the order of a product's arguments, float16 as its bits.

    They are read-only like the parts of a mapped model folder, so that tests and engine share compiled code.
    """
    arguments = [part.view(np.uint16) if part.dtype == np.float16 else part.view() for part in matrix.parts.values()]
    for argument in arguments:
        argument.flags.writeable = False
    return tuple(arguments)


def multiply(products: object, matrix: PackedMatrix, x: Codes, tokens: int) -> NDArray[np.float32]:
    """Run a product of a module of kernels over blocks of `tokens`; float32 [num_tokens, padded rows]."""
    num_blocks = -(-x.num_tokens // tokens)
    out = np.full((num_blocks * tokens, num_tiles(matrix.shape[0]) * TILE_ROWS), np.nan, np.float32)
    if x.codes.dtype == np.int16:
        products.matmul_i8g64_int16(*weight_arguments(matrix), *x.in_int16_blocks(tokens), out)  # type: ignore[attr-defined]
        return out[: x.num_tokens]
    if products is kernels and matrix.format in kernels.FUSED_FORMATS:
        run_products([matrix], x.in_blocks(tokens), x.num_tokens, outs=[out])
        return out[: x.num_tokens]
    run = products.MATMUL[matrix.format]  # type: ignore[attr-defined]
    if matrix.format == "bf16":
        rows = np.pad(x.dequantized().astype(np.float32), ((0, num_blocks * tokens - x.num_tokens), (0, 0)))
        blocks = np.ascontiguousarray(rows.reshape(num_blocks, tokens, -1).swapaxes(1, 2))
        run(*weight_arguments(matrix), blocks, out)
    else:
        run(*weight_arguments(matrix), *x.in_blocks(tokens)[:3], out)
    return out[: x.num_tokens]


def run_products(
    matrices: Sequence[PackedMatrix],
    x: Blocks,
    num_tokens: int,
    *,
    outs: Sequence[NDArray[np.float32]] = (),
    total: NDArray[np.float32] | None = None,
    gated: Blocks | None = None,
    num_workers: int = 2,
) -> None:
    """Run the fused products: store to `outs`, add to `total` or gate into `gated`, whichever is given."""
    jobs = kernels.table_of_jobs(matrices)
    for job, out in zip(jobs, outs, strict=False):
        job[kernels.OUT], job[kernels.STRIDE] = out.ctypes.data, out.shape[1]
    mode = kernels.STORE if outs else kernels.ADD if total is not None else kernels.GATE
    scratch = np.full((num_workers, kernels.scratch_floats(x[0].shape[0] * x[0].shape[2])), np.nan, np.float32)
    total = np.zeros((0, 0), np.float32) if total is None else total
    kernels.run_products(jobs, x, num_tokens, mode, total, gated or x, scratch, num_workers)


def expected_product(matrix: PackedMatrix, x: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the float64 product [num_tokens, rows] and the error that float32 sums may have at most.

    Each summed term is rounded a constant number of times (at most 4: the scale's factors, the conversion, the
    product), and each partial sum once. No partial sum exceeds the sum of the magnitudes, so an output of n terms is
    off by at most (n + 4) * EPS * sum |term|. A term is the columns of a scale, 32 at most, for integer formats, a
    column for bf16.
    """
    weights = dequantize(matrix).astype(np.float64)
    activations = x.dequantized()
    if matrix.format == "bf16":
        activations = activations.astype(np.float32).astype(np.float64)
    width = min(GROUP, SCALE_GROUPS.get(matrix.format, 1))
    terms = np.einsum(
        "tgc,rgc->trg",
        activations.reshape(x.num_tokens, -1, width),
        weights.reshape(matrix.shape[0], -1, width),
        optimize=True,
    )
    return terms.sum(axis=2), (terms.shape[2] + 4) * EPS * np.abs(terms).sum(axis=2)
