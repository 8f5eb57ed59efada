"""The bit layout of every weight format: packing codes into the bytes that the kernels read, and unpacking them.

This file owns where each bit of a quantized matrix lies. It does not choose scales or codes (`quant` does) and does not
multiply (`kernels` do). Invariant: `unpack(pack(x))` gives back x for every format. Parts need not end at a multiple of
64 bytes; whoever stores them one after the other aligns them (`model_folder` does).

Every matrix is cut into tiles of TILE_ROWS = 16 output rows (the last tile is filled up with zero rows). Within a tile
the bytes stand in the order in which a dot product walks the input columns, as lines of 64 bytes in which lane r (the
bytes 4r .. 4r+3) belongs to row r, so that no kernel on any instruction set moves data across lanes:

    format  bits a weight  one line covers   bytes of a lane                                  scales
    c4g32   4.3125         8 columns         low nibbles: columns k..k+3, high: k+4..k+7      int8 / 32, float16 / 256
    c4g16   4.5625         8 columns         as c4g32                                         int8 / 16, float16 / 256
    c3g32   3.3125         32 columns in     lower 3 bits of nibbles as c4g32: columns        int8 / 32, float16 / 256
                           3 lines           k..k+23; upper bits of line n's nibbles:
                                             bit n of columns k+24..k+27 and k+28..k+31
    i6g32   6.3125         16 columns in     2 lines as c4g32, then 1 line of high bits:      int8 / 32, float16 / 256
                           3 lines           bits 2j, 2j+1 of byte i: column k + 4j + i
    i8g64   8.25           4 columns         int8 columns k..k+3                              float16 / 64
    bf16    16             1 column          uint16 (32-byte line, 2 bytes a row)             none

A weight is, with the group index g of its column in the scale's unit:

    c4, c3  (codebook[code] - 64) * scales[g] * super_scales[G]     codebook: ascending uint8 values of the tensor
    i6g32   (code - 32) * scales[g] * super_scales[G]
    i8g64   code * scales[g]

A codebook has 16 values, or 8 for c3g32, stored twice, so that the lookup of a nibble does not see its upper bit.
Scales stand by tile, then group, then row. Source of the layout and of the choice of formats: ARCHITECTURE.md, section
"Weight formats".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 16
GROUP = 32
SUPER_GROUP = 256
INT8_GROUP = 64
# Columns of a key or value that share a scale in int8 pages, as in llama.cpp's q8_0. With 64 of them nano lost 1.4
# times what q8_0 K and V cost.
KV_GROUP = 32
# Bytes of a codebook as one byte shuffle takes it.
CODEBOOK_BYTES = 16
CODEBOOK_OFFSET = 64
CODEBOOK_LIMIT = 63
INT6_OFFSET = 32

FORMATS = ("c4g32", "c4g16", "c3g32", "i6g32", "i8g64", "bf16")
# Learned values of a tensor in the formats that have a codebook.
CODEBOOK_SIZES: Mapping[str, int] = {"c4g32": 16, "c4g16": 16, "c3g32": 8}
CODE_BITS: Mapping[str, int] = {"c4g32": 4, "c4g16": 4, "c3g32": 3, "i6g32": 6, "i8g64": 8, "bf16": 16}
# Columns that share a scale, without super-scales.
SCALE_GROUPS: Mapping[str, int] = {"c4g32": GROUP, "c4g16": 16, "c3g32": GROUP, "i6g32": GROUP, "i8g64": INT8_GROUP}
BITS_PER_WEIGHT: Mapping[str, float] = {
    "c4g32": 4.3125, "c4g16": 4.5625, "c3g32": 3.3125, "i6g32": 6.3125, "i8g64": 8.25, "bf16": 16.0,
}  # fmt: skip
COLUMN_MULTIPLE: Mapping[str, int] = {
    **dict.fromkeys(("c4g32", "c4g16", "c3g32", "i6g32"), SUPER_GROUP), "i8g64": INT8_GROUP, "bf16": 1,
}  # fmt: skip

Array = NDArray[Any]
PartLayout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix in kernel layout.

    Attributes:
        format: one of FORMATS.
        shape: (rows, columns) of the matrix, rows being outputs; the parts are padded to whole tiles.
        parts: the arrays of `part_layout(format, shape)`, by name; often views of a mapped file.
    """

    format: str
    shape: tuple[int, int]
    parts: Mapping[str, Array]

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts.values())


def num_tiles(rows: int) -> int:
    """Return how many tiles of TILE_ROWS rows hold `rows` rows."""
    return -(-rows // TILE_ROWS)


def part_layout(format: str, shape: tuple[int, int]) -> PartLayout:
    """Return dtype and shape of each part of a packed matrix.

    Args:
        format: one of FORMATS.
        shape: (rows, columns); columns a multiple of COLUMN_MULTIPLE[format].

    Raises:
        ValueError: the format is unknown or the columns do not divide.
    """
    if format not in COLUMN_MULTIPLE:
        raise ValueError(f"unknown weight format {format!r}; known: {', '.join(FORMATS)}")
    rows, columns = shape
    if columns % COLUMN_MULTIPLE[format] or columns < 1:
        raise ValueError(f"{format} needs a multiple of {COLUMN_MULTIPLE[format]} columns, not {columns}")
    tiles = num_tiles(rows)
    uint8, int8, float16 = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float16)
    if format == "bf16":
        return {"codes": (np.dtype(np.uint16), (tiles, columns, TILE_ROWS))}
    if format == "i8g64":
        return {
            "codes": (int8, (tiles, columns // 4, 4 * TILE_ROWS)),
            "scales": (float16, (tiles, columns // INT8_GROUP, TILE_ROWS)),
        }
    scales: PartLayout = {
        "scales": (int8, (tiles, columns // SCALE_GROUPS[format], TILE_ROWS)),
        "super_scales": (float16, (tiles, columns // SUPER_GROUP, TILE_ROWS)),
    }
    if format == "i6g32":
        return {"codes": (uint8, (tiles, columns // 16, 192)), **scales}
    # The codebook is stored four times over: 64 bytes, one register of the widest instruction set.
    lines = columns * CODE_BITS[format] // 32
    return {"codes": (uint8, (tiles, lines, 64)), **scales, "codebook": (uint8, (4, CODEBOOK_BYTES))}


def packed_bytes(format: str, shape: tuple[int, int]) -> int:
    """Return the bytes of a packed matrix, padding of the last tile included."""
    return sum(dtype.itemsize * int(np.prod(part)) for dtype, part in part_layout(format, shape).values())


def pack_codes(format: str, codes: Array) -> Array:
    """Arrange the codes of whole rows as the part `codes`.

    Args:
        format: one of FORMATS.
        codes: [rows, columns]; uint8 0..15 for c4g32 and c4g16, 0..7 for c3g32, 0..63 for i6g32, int8 for i8g64, uint16
            (the upper half of a float32) for bf16. Missing rows of the last tile become zero codes.

    Returns:
        The array of `part_layout(format, codes.shape)["codes"]`.
    """
    dtype, shape = part_layout(format, (codes.shape[0], codes.shape[1]))["codes"]
    tiled = _tile_rows(codes.astype(dtype, copy=False))
    tiles, columns = tiled.shape[0], codes.shape[1]
    if format == "bf16":
        return np.ascontiguousarray(tiled.transpose(0, 2, 1))
    if format == "i8g64":
        return np.ascontiguousarray(tiled.reshape(tiles, TILE_ROWS, columns // 4, 4).swapaxes(1, 2)).reshape(shape)
    # [tile, row, line, low or high nibble, byte] -> [tile, line, row, byte]
    split = (_nibbles_from_three_bits(tiled) if format == "c3g32" else tiled).reshape(tiles, TILE_ROWS, -1, 2, 4)
    low, high = split[:, :, :, 0] & 15, split[:, :, :, 1] & 15
    nibbles = np.ascontiguousarray((low | (high << 4)).swapaxes(1, 2)).reshape(tiles, -1, 64)
    if format in CODEBOOK_SIZES:
        return nibbles
    quarters = (tiled >> 4).reshape(tiles, TILE_ROWS, columns // 16, 4, 4)
    upper = quarters[:, :, :, 0] | quarters[:, :, :, 1] << 2 | quarters[:, :, :, 2] << 4 | quarters[:, :, :, 3] << 6
    upper = np.ascontiguousarray(upper.swapaxes(1, 2)).reshape(tiles, columns // 16, 64)
    return np.concatenate([nibbles.reshape(tiles, columns // 16, 128), upper], axis=2)


def unpack_codes(format: str, packed: Array, shape: tuple[int, int]) -> Array:
    """Undo `pack_codes`: return the codes as [rows, columns]."""
    rows, columns = shape
    tiles = packed.shape[0]
    if format == "bf16":
        tiled = packed.transpose(0, 2, 1)
    elif format == "i8g64":
        tiled = packed.reshape(tiles, columns // 4, TILE_ROWS, 4).swapaxes(1, 2)
    else:
        nibbles = packed[:, :, :128] if format == "i6g32" else packed
        lanes = nibbles.reshape(tiles, -1, TILE_ROWS, 4).swapaxes(1, 2)
        tiled = np.stack([lanes & 15, lanes >> 4], axis=3)
        if format == "c3g32":
            tiled = _three_bits_from_nibbles(tiled)
        if format == "i6g32":
            upper = packed[:, :, 128:].reshape(tiles, columns // 16, TILE_ROWS, 4).swapaxes(1, 2)
            quarters = np.stack([(upper >> shift) & 3 for shift in (0, 2, 4, 6)], axis=3)
            tiled = tiled.reshape(tiles, TILE_ROWS, columns) | (quarters.reshape(tiles, TILE_ROWS, columns) << 4)
    return np.ascontiguousarray(tiled.reshape(tiles * TILE_ROWS, columns)[:rows])


def _nibbles_from_three_bits(tiled: Array) -> Array:
    """[tile, row, columns] of codes 0..7 -> nibbles of 24 of each 32 columns, their upper bits those of the other 8."""
    # [tile, row, group, line of 8 columns, column]
    lines = tiled.reshape(*tiled.shape[:2], -1, 4, 8)
    upper = np.stack([lines[:, :, :, 3] >> line & 1 for line in range(3)], axis=3)
    nibbles: Array = lines[:, :, :, :3] | upper << 3
    return nibbles


def _three_bits_from_nibbles(nibbles: Array) -> Array:
    """Undo `_nibbles_from_three_bits`: return [tile, row, group, line of 8 columns, column]."""
    lines = nibbles.reshape(*nibbles.shape[:2], -1, 3, 8)
    upper = lines >> 3
    last = upper[:, :, :, 0] | upper[:, :, :, 1] << 1 | upper[:, :, :, 2] << 2
    return np.concatenate([lines & 7, last[:, :, :, None]], axis=3)


def pack_scales(scales: Array) -> Array:
    """Arrange scales [rows, groups] as [tile, group, row]; missing rows of the last tile become 0."""
    return np.ascontiguousarray(_tile_rows(scales).swapaxes(1, 2))


def unpack_scales(packed: Array, rows: int) -> Array:
    """Undo `pack_scales`: return the scales as [rows, groups]."""
    tiles, groups, _ = packed.shape
    return np.ascontiguousarray(packed.swapaxes(1, 2).reshape(tiles * TILE_ROWS, groups)[:rows])


def pack_codebook(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the codebook part of 8 or 16 ascending integers in -63..63, stored + 64 and repeated to 64 bytes."""
    is_size = values.ndim == 1 and len(values) in CODEBOOK_SIZES.values()
    if not is_size or np.abs(values).max() > CODEBOOK_LIMIT or (np.diff(values) < 0).any():
        raise ValueError(f"a codebook is 8 or 16 ascending integers in -63..63, not {values.tolist()}")
    return np.tile((values + CODEBOOK_OFFSET).astype(np.uint8), (4, CODEBOOK_BYTES // len(values)))


def bfloat16_from_float32(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even, as its 16 bits; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def float32_from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen the 16 bits of bfloat16 values to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dequantize(matrix: PackedMatrix) -> NDArray[np.float32]:
    """Return the matrix that a packed matrix stands for, as float32 [rows, columns]."""
    rows, _ = matrix.shape
    codes = unpack_codes(matrix.format, matrix.parts["codes"], matrix.shape)
    if matrix.format == "bf16":
        return float32_from_bfloat16(codes.astype(np.uint16, copy=False))
    scales, group = unpack_scales(matrix.parts["scales"], rows).astype(np.float32), SCALE_GROUPS[matrix.format]
    if matrix.format == "i8g64":
        return codes.astype(np.float32) * np.repeat(scales, group, axis=1)
    super_scales = unpack_scales(matrix.parts["super_scales"], rows).astype(np.float32)
    scales = scales * np.repeat(super_scales, SUPER_GROUP // group, axis=1)
    if matrix.format == "i6g32":
        values = codes.astype(np.float32) - INT6_OFFSET
    else:
        values = (matrix.parts["codebook"][0].astype(np.float32) - CODEBOOK_OFFSET)[codes]
    weights: NDArray[np.float32] = values * np.repeat(scales, group, axis=1)
    return weights


def dequantize_rows(matrix: PackedMatrix, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return some rows of the matrix, float32 [len(rows), columns], reading only their tiles: the embedding lookup."""
    tiles, lanes, columns = rows // TILE_ROWS, rows % TILE_ROWS, matrix.shape[1]
    codes = matrix.parts["codes"]
    if matrix.format == "bf16":
        return float32_from_bfloat16(codes[tiles, :, lanes])
    if matrix.format == "i8g64":
        values = codes.reshape(len(codes), columns // 4, TILE_ROWS, 4)[tiles, :, lanes].reshape(len(rows), columns)
        scales = matrix.parts["scales"][tiles, :, lanes].astype(np.float32)
        weights: NDArray[np.float32] = values.astype(np.float32) * np.repeat(scales, INT8_GROUP, axis=1)
        return weights
    parts = {name: part if name == "codebook" else part[tiles] for name, part in matrix.parts.items()}
    whole = dequantize(PackedMatrix(matrix.format, (len(rows) * TILE_ROWS, columns), parts))
    taken: NDArray[np.float32] = whole.reshape(len(rows), TILE_ROWS, columns)[np.arange(len(rows)), lanes]
    return taken


def _tile_rows(array: Array) -> Array:
    """[rows, n] -> [tile, TILE_ROWS, n], filled up with zeros."""
    missing = -array.shape[0] % TILE_ROWS
    if missing:
        array = np.concatenate([array, np.zeros((missing, array.shape[1]), array.dtype)])
    return array.reshape(-1, TILE_ROWS, array.shape[1])
