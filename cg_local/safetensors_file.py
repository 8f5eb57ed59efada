"""One safetensors file: its header judged completely at opening, its tensors as bytes.

This file owns the container format in both directions: reading (`SafetensorsFile`) and laying out a header for a writer
that knows all sizes beforehand (`header_bytes`). It does not know what a tensor means. Invariant: after the
constructor returned, the tensors cover the data part of the file exactly, without overlap, hole or excess, so that no
later read can leave the file.

Source: the format section of huggingface/safetensors' README: a little-endian uint64 header length, a JSON header of at
most 100 MB that begins with "{", then the data, to which the header's offsets are relative.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.errors import CgLocalError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
READ_BYTES = 16 << 20  # one read call; large enough that its cost vanishes, small beside any memory limit

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: its key in the header.
        dtype: "BF16", "F16", "F32", "U8", "I8", "U16", ...: a key of DTYPE_BITS.
        shape: lengths of its axes, row-major.
        offset: first byte, from the start of the file.
        num_bytes: length; agrees with dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """A read-only safetensors file.

    Attributes:
        path: of the file.
        entries: every tensor by name, in the order of the data.
        metadata: the string pairs under "__metadata__".

    `read` copies bytes and fails cleanly when the file shrank since it was opened; `bytes_of` maps without a copy.
    """

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def __init__(
        self, path: Path, error: type[CgLocalError], *, remedy: str = "the file is damaged: fetch or write it again"
    ) -> None:
        """Open the file and judge its header.

        Args:
            path: a regular file.
            error: what to raise for everything wrong with it.
            remedy: end of the messages about damage: what the user should do.

        Raises:
            error: no such file, cut at any place, or a header that is not exactly as the format says.
        """
        self.path = path
        self._error = error
        self._remedy = remedy
        self._file_descriptor = _open(path, error)
        self._finalizer = weakref.finalize(self, os.close, self._file_descriptor)
        self._map: mmap.mmap | None = None
        try:
            self._file_bytes = os.fstat(self._file_descriptor).st_size
            header, data_start = self._read_header()
            self.metadata = self._judge_metadata(header.pop("__metadata__", {}))
            self.entries = self._judge_entries(header, data_start)
        except BaseException:
            self._finalizer()
            raise

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as a read-only view of the mapped file, without a copy."""
        entry = self.entries[name]
        if self._map is None:
            try:
                self._map = mmap.mmap(self._file_descriptor, 0, access=mmap.ACCESS_READ)
            except OSError as cause:
                raise self._error(
                    f"{self.path}: cannot be mapped into memory ({cause.strerror}); check free memory"
                ) from cause
        if entry.num_bytes == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, entry.num_bytes, entry.offset)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Copy the bytes start..stop of a tensor (all by default) into a new array.

        Raises:
            error (of the constructor): the file shrank since it was opened, or the device fails.
        """
        entry = self.entries[name]
        stop = entry.num_bytes if stop is None else stop
        assert 0 <= start <= stop <= entry.num_bytes, (name, start, stop)
        return self._read_at(entry.offset + start, stop - start, f"tensor {shown(name)}")

    def _read_at(self, offset: int, num_bytes: int, what: str) -> NDArray[np.uint8]:
        data = np.empty(num_bytes, np.uint8)
        done = 0
        while done < num_bytes:
            wanted = min(READ_BYTES, num_bytes - done)
            try:
                chunk = _pread(self._file_descriptor, wanted, offset + done)
            except OSError as cause:
                raise self._error(f"{self.path}: {what} cannot be read ({cause.strerror}); check the disk") from cause
            if not chunk:
                raise self._damaged(f"{what} ends at byte {offset + num_bytes:,}, the file now at {offset + done:,}")
            data[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        return data

    def _read_header(self) -> tuple[dict[str, object], int]:
        """Return the parsed header and the offset of the first data byte."""
        size = self._file_bytes
        if size < LENGTH_BYTES:
            raise self._damaged(f"{size:,} bytes, a safetensors file has at least {LENGTH_BYTES + 2}")
        length = int(self._read_at(0, LENGTH_BYTES, "the header length").view("<u8")[0])
        if length > MAX_HEADER_BYTES or length < 2:
            raise self._damaged(f"claims a header of {length:,} bytes, the format allows 2 to {MAX_HEADER_BYTES:,}")
        if LENGTH_BYTES + length > size:
            raise self._damaged(
                f"the header ends at byte {LENGTH_BYTES + length:,}, the file has {size:,} bytes (it is cut)"
            )
        data = self._read_at(LENGTH_BYTES, length, "the header").tobytes()
        if not data.startswith(b"{"):
            raise self._damaged("the header does not begin with '{', so this is no safetensors file")
        try:
            header = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as cause:
            raise self._damaged(f"the header is not JSON ({' '.join(str(cause).split())[:120]})") from cause
        assert isinstance(header, dict)  # it begins with "{"
        return header, LENGTH_BYTES + length

    def _judge_metadata(self, metadata: object) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged("__metadata__ is not an object of strings")
        return metadata

    def _judge_entries(self, header: Mapping[str, object], data_start: int) -> dict[str, TensorEntry]:
        """Check every entry, then that together they cover the data part exactly."""
        entries = [self._judge_entry(name, value, data_start) for name, value in header.items()]
        # Empty tensors sort before the tensor that starts at the same byte.
        entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
        end, previous = data_start, "the header"
        for entry in entries:
            if entry.offset != end:
                fault = "overlaps" if entry.offset < end else "leaves a hole behind"
                raise self._damaged(
                    f"tensor {shown(entry.name)} {fault} {previous}: starts at byte {entry.offset:,}, expected {end:,}"
                )
            end, previous = entry.offset + entry.num_bytes, f"tensor {shown(entry.name)}"
        if end != self._file_bytes:
            fault = "it is cut" if end > self._file_bytes else "the rest belongs to no tensor"
            raise self._damaged(f"{previous} ends at byte {end:,}, the file has {self._file_bytes:,} bytes ({fault})")
        return {entry.name: entry for entry in entries}

    def _judge_entry(self, name: str, value: object, data_start: int) -> TensorEntry:
        where = f"tensor {shown(name)}"
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{where}: its entry must have exactly dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            raise self._damaged(f"{where}: unknown dtype {shown(dtype)}")
        if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._damaged(f"{where}: shape {shown(shape)} and data_offsets {shown(offsets)} are not valid counts")
        needed_bits = math.prod(shape) * DTYPE_BITS[dtype]
        num_bytes = offsets[1] - offsets[0]
        if needed_bits != 8 * num_bytes:
            needed = f"{shown(shape)} of {dtype} needs {shown(-(-needed_bits // 8))} bytes"
            raise self._damaged(f"{where}: {needed}, data_offsets give {num_bytes:,}")
        return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], num_bytes)

    def _damaged(self, fault: str) -> CgLocalError:
        return self._error(f"{self.path}: {fault}; {self._remedy}")


def header_bytes(
    entries: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], alignment: int = 64
) -> tuple[bytes, dict[str, int]]:
    """Lay out a safetensors file whose tensors follow each other in the given order.

    Args:
        entries: (name, dtype, shape) of each tensor; dtype a key of DTYPE_BITS.
        metadata: string pairs for "__metadata__"; left out when empty.
        alignment: the data part starts at a multiple of it. The format allows no holes, so later tensors are aligned
            only while every length before them is a multiple of it too.

    Returns:
        The bytes before the data (length, JSON, padding spaces) and the absolute offset of each tensor by name.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    relative: dict[str, int] = {}
    end = 0
    for name, dtype, shape in entries:
        assert name not in header, name
        assert name != "__metadata__"
        start, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        relative[name] = start
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(LENGTH_BYTES + len(text)) % alignment)
    data_start = LENGTH_BYTES + len(text)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, {n: data_start + start for n, start in relative.items()}


def shown(value: object) -> str:
    """A name or value out of a file for a one-line message: escaped unless plain, and cut when long."""
    is_plain = isinstance(value, str) and value.isascii() and value.isprintable() and bool(value)
    text = str(value) if is_plain else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _open(path: Path, error: type[CgLocalError]) -> int:
    """Open a regular file for reading; a pipe or device would block or never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(f"{path}: not a regular file; give a safetensors file")
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as cause:
        reason = "no such file" if isinstance(cause, FileNotFoundError) else cause.strerror or "unreadable"
        raise error(f"{path}: {reason}; check the path and its permissions") from cause


def _pread(file_descriptor: int, num_bytes: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file_descriptor, num_bytes, offset)
    os.lseek(file_descriptor, offset, os.SEEK_SET)  # Windows: one reader at a time
    return os.read(file_descriptor, num_bytes)


def _is_counts(value: object) -> bool:
    """Bounded in number and size, so that products and their texts stay small whatever the header says."""
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
    )


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object, refusing a key that stands twice (readers differ in which one they would take)."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(repeated)} stands twice")
    return values
