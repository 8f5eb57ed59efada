"""The GGUF container: metadata, names, shapes and places of tensors, and their bytes.

This file owns the layout of the file, versions 2 and 3. It knows no model and decodes no weight. Invariant: every
tensor of an opened `GgufContainer` lies whole inside the file, apart from all others, in a type whose size is known.

The package `gguf` has a reader too, but it makes an array of every token, score and type: 16 s and 690 MiB for the
256,000 pieces of CodeGemma (measured), where this one takes half a second and the strings' own memory.

Source of the layout and of the types' numbers and sizes: ggml-org/ggml, docs/gguf.md and src/ggml-common.h.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cg_local.errors import CheckpointError
from cg_local.safetensors_file import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_COUNT = 1 << 20  # of metadata entries and of tensors; the largest published models have a few thousand
MAX_DIMENSIONS = 4
REMEDY = "the file is damaged or its download is not complete: download it again"

# Number of a metadata value's type -> NumPy's name; 8 is a string, 9 an array.
SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class BlockType:
    """How a tensor's values are stored: `num_values` neighbours of a row in `num_bytes` bytes."""

    name: str
    num_values: int
    num_bytes: int


TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}
# Types that files are published in and that cg-local does not read, for the message alone.
OTHER_TYPES: Mapping[int, str] = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place: `shape` has the rows first, the other way round than the file; `offset` is from its start."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, or of one value of a vector."""
        columns = math.prod(self.shape[1:]) if len(self.shape) > 1 else 1
        return columns // self.type.num_values * self.type.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.shape[0] * self.row_bytes


class GgufContainer:
    """An opened GGUF file.

    Attributes:
        path: of the file.
        metadata: value by key: int, float, bool, str, a NumPy array, or a list of bytes (an array of strings).
        tensors: by the name that the file gives them, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the header and check every entry.

        Raises:
            CheckpointError: no GGUF file, another version or byte order, damaged, cut, or with a tensor of a type that
                is not in TYPES.
            OSError: the file cannot be opened.
        """
        self.path = path
        self._file: IO[bytes] = path.open("rb")
        self._finalizer = weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        try:
            self._file_bytes = os.fstat(self._file.fileno()).st_size
            num_tensors, num_entries = self._read_counts()
            self.metadata: dict[str, object] = {}
            for _ in range(num_entries):
                key = self._string("a metadata key").decode("utf-8", "replace")
                if key in self.metadata:
                    raise self._damaged(f"has the metadata key {shown(key)} twice")
                self.metadata[key] = self._value(self._integer("<I", key), shown(key))
            self.tensors = self._judge(self._read_tensors(num_tensors))
        except BaseException:
            self._finalizer()
            raise

    def read(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a copy of the bytes start..stop of a tensor; safe to call from several threads.

        Raises:
            CheckpointError: the file shrank since it was opened, or the device fails.
        """
        tensor = self.tensors[name]
        assert 0 <= start <= stop <= tensor.num_bytes, (name, start, stop)
        try:
            with self._lock:
                self._file.seek(tensor.offset + start)
                data = self._file.read(stop - start)
        except OSError as cause:
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} cannot be read ({cause.strerror}); check the disk"
            ) from cause
        if len(data) != stop - start:
            raise self._damaged(f"tensor {shown(name)} ends behind the end of the file, which shrank")
        return np.frombuffer(data, np.uint8)

    def _read_counts(self) -> tuple[int, int]:
        if self._take(4, "the file's first bytes") != MAGIC:
            raise CheckpointError(f"{self.path}: does not begin with GGUF, so this is no GGUF file")
        version = self._integer("<I", "the version")
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{self.path}: a big-endian GGUF file; needed is the usual little-endian one")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path}: GGUF version {version}; needed is 2 or 3: take a file that was converted later"
            )
        counts = self._integer("<Q", "the number of tensors"), self._integer("<Q", "the number of metadata entries")
        if max(counts) > MAX_COUNT:
            raise self._damaged(f"claims {counts[0]:,} tensors and {counts[1]:,} metadata entries")
        return counts

    def _value(self, kind: int, where: str) -> object:
        if kind == STRING:
            return self._string(where).decode("utf-8", "replace")
        if kind == ARRAY:
            return self._array(where)
        if kind not in SCALARS:
            raise self._damaged(f"{where} has a value of the unknown type {kind}")
        return self._scalars(kind, 1, where)[0].item()

    def _array(self, where: str) -> NDArray[np.generic] | list[bytes]:
        kind, length = self._integer("<I", where), self._integer("<Q", where)
        if kind == STRING:
            if length * 8 > self._file_bytes:
                raise self._damaged(f"{where} claims {length:,} strings")
            return [self._string(where) for _ in range(length)]
        if kind not in SCALARS:
            raise self._damaged(f"{where} is an array of the unknown type {kind}")
        return self._scalars(kind, length, where)

    def _scalars(self, kind: int, length: int, where: str) -> NDArray[np.generic]:
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self._take(length * dtype.itemsize, where), dtype)

    def _string(self, where: str) -> bytes:
        return self._take(self._integer("<Q", where), where)

    def _integer(self, format: str, where: str) -> int:
        return int(struct.unpack(format, self._take(struct.calcsize(format), where))[0])

    def _take(self, num_bytes: int, where: str) -> bytes:
        # Compared before reading: a damaged length must not ask for memory.
        data = self._file.read(num_bytes) if num_bytes <= self._file_bytes else b""
        if len(data) != num_bytes:
            raise self._damaged(f"{where}: its {num_bytes:,} bytes end behind the file's {self._file_bytes:,}")
        return data

    def _read_tensors(self, num_tensors: int) -> list[GgufTensor]:
        """Read the entries of all tensors; their offsets count from the end of the header, aligned."""
        entries = []
        for _ in range(num_tensors):
            name = self._string("a tensor's name").decode("utf-8", "replace")
            where = f"tensor {shown(name)}"
            num_dimensions = self._integer("<I", where)
            if not 1 <= num_dimensions <= MAX_DIMENSIONS:
                raise self._damaged(f"{where} has {num_dimensions} dimensions")
            lengths = [self._integer("<Q", where) for _ in range(num_dimensions)]
            kind, offset = self._integer("<I", where), self._integer("<Q", where)
            entries.append(GgufTensor(name, tuple(reversed(lengths)), self._type(kind, where), offset))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {shown(alignment)}, not a power of two")
        start = -(-self._file.tell() // alignment) * alignment
        return [GgufTensor(entry.name, entry.shape, entry.type, start + entry.offset) for entry in entries]

    def _type(self, kind: int, where: str) -> BlockType:
        if kind not in TYPES:
            name = OTHER_TYPES.get(kind, f"number {kind}")
            known = ", ".join(known.name for known in TYPES.values())
            raise CheckpointError(
                f"{self.path}: {where} is stored in type {name}; cg-local reads {known}: take a file of one of those, "
                "at best the unquantized one"
            )
        return TYPES[kind]

    def _judge(self, tensors: list[GgufTensor]) -> dict[str, GgufTensor]:
        end, previous = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            where = f"tensor {shown(tensor.name)}"
            if min(tensor.shape) == 0 or tensor.shape[-1] % tensor.type.num_values:
                raise self._damaged(f"{where} has shape {list(tensor.shape)}, which {tensor.type.name} cannot have")
            if tensor.offset < end:
                raise self._damaged(f"{where} overlaps {previous}")
            end, previous = tensor.offset + tensor.num_bytes, where
            if len(tensor.shape) == 1 and tensor.type.num_values > 1:
                raise self._damaged(f"{where} is a vector in {tensor.type.name}")
            if end > self._file_bytes:
                raise self._damaged(f"{where} ends at byte {end:,}, the file at {self._file_bytes:,} (it is cut)")
        named = {tensor.name: tensor for tensor in tensors}
        if len(named) != len(tensors):
            raise self._damaged("has two tensors of one name")
        return named

    def _damaged(self, fault: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {fault}; {REMEDY}")
