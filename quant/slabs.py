"""Slabs of rows: from an encoder, by threads, to the disk and into the journal.

This file owns the order of work, the threads' share of it, the memory bound and what is recorded when. It knows no
format's details (`encode`), no method's (`encoder`) and no file's layout (`model_folder_writer`). Invariant: the blocks
at work together hold at most BLOCKS_BUDGET bytes of float32, and each tensor's are written in order, so the bytes of
the model folder are the same for every number of threads and whatever interrupted the work.

A slab is what the journal tells of: rows whose float32 values take SLAB_BYTES. A block is what a thread encodes at a
time: a piece of a slab, the smaller the more threads there are.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.model_folder_writer import ModelFolderWriter
from cg_local.packing import TILE_ROWS, Array, PackedMatrix, part_layout
from cg_local.quant.encode import EncodedRows
from cg_local.quant.encoder import Encoder
from cg_local.quant.journal import Journal, Slab
from cg_local.quant.report import TensorReport
from cg_local.quant.schemes import GAIN_FORMAT, QuantizationPlan, TensorPlan

SLAB_BYTES = 16 << 20
BLOCKS_BUDGET = 48 << 20  # float32 bytes of all blocks at work together; encoding needs about four times that beside
MAX_BLOCK_BYTES = 4 << 20

Progress = Callable[[int, int, str], None]


class SlabStore:
    """The slabs of a model folder that is being written.

    Attributes:
        num_bytes: of all tensors that are written, or were restored.
        damaged: names of the tensors of which something that an earlier run wrote was not sound.
    """

    num_bytes: int
    damaged: list[str]

    def __init__(self, writer: ModelFolderWriter, journal: Journal | None) -> None:
        """Prepare; nothing is read or written.

        Args:
            writer: entered.
            journal: entered; None: nothing is recorded, and an interruption loses all.
        """
        self._writer, self._journal = writer, journal
        self._slabs: dict[str, list[Slab]] = {}
        self._draft: _Draft | None = None
        self.num_bytes, self.damaged = 0, []

    def restore(self, tensors: Sequence[TensorPlan], pool: ThreadPoolExecutor) -> None:
        """Take what the journal tells of, as far as the bytes still have their digests."""
        if self._journal is None:
            return
        recorded = {tensor.name: self._journal.slabs.get(tensor.name, []) for tensor in tensors}
        for name, sound in zip(recorded, pool.map(self._restored, recorded.values()), strict=True):
            self._slabs[name] = sound
            self.num_bytes += sum(num_bytes for slab in sound for num_bytes, _ in slab.parts.values())
            if len(sound) < len(recorded[name]):
                self.damaged.append(name)

    def next_row(self, tensor: TensorPlan) -> int:
        """Return the first row that is not on the disk; the number of rows when all are."""
        slabs = self._slabs.get(tensor.name)
        return slabs[-1].stop if slabs else 0

    def append(self, tensor: TensorPlan, start: int, encoded: EncodedRows) -> None:
        """Write the next rows of a tensor; they belong to the slab that the next `close` ends."""
        if self._draft is None:
            self._draft = _Draft(tensor.name, start)
        self._draft.errors.append(encoded.errors)
        for part, values in encoded.parts.items():
            self.append_part(tensor, part, values)

    def append_part(self, tensor: TensorPlan, part: str, values: Array) -> None:
        """Write the next bytes of one part of a tensor, "" the gain itself."""
        assert self._draft is not None, "a slab begins with rows"
        name = f"{tensor.name}.{part}" if part else tensor.name
        self._writer.append(name, values)
        self._draft.update(name, np.ascontiguousarray(values))
        self.num_bytes += values.nbytes

    def close(self, stop: int) -> None:
        """End a slab before row `stop`: its bytes and then its line go to the disk."""
        assert self._draft is not None, "a slab begins with rows"
        slab = self._draft.finished(stop)
        self._draft = None
        if self._journal is not None:
            self._writer.sync()
            self._journal.add(slab)
        self._slabs.setdefault(slab.tensor, []).append(slab)

    def report(self, tensor: TensorPlan) -> TensorReport:
        """Sum up the errors of a finished matrix."""
        figures = np.array([slab.figures for slab in self._slabs[tensor.name]], np.float64)
        return TensorReport.from_errors(tensor.name, tensor.format, figures)

    def packed(self, tensor: TensorPlan) -> PackedMatrix:
        """Return a finished matrix as it stands in the file."""
        shape = (tensor.shape[0], tensor.shape[1])
        parts = {
            part: np.frombuffer(self._writer.read(f"{tensor.name}.{part}"), dtype).reshape(part_shape)
            for part, (dtype, part_shape) in part_layout(tensor.format, shape).items()
        }
        return PackedMatrix(tensor.format, shape, parts)

    def _restored(self, slabs: list[Slab]) -> list[Slab]:
        """The first slabs of a tensor, up to one whose bytes are not sound."""
        for number, slab in enumerate(slabs):
            if not self._writer.restore(slab.parts):
                return slabs[:number]
        return list(slabs)


@dataclass
class _Draft:
    """A slab that grows."""

    tensor: str
    start: int
    errors: list[NDArray[np.float64]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)

    def update(self, name: str, values: Array) -> None:
        self.sizes[name] = self.sizes.get(name, 0) + values.nbytes
        self.digests.setdefault(name, hashlib.sha256()).update(values.reshape(-1).view(np.uint8).data)

    def finished(self, stop: int) -> Slab:
        errors = np.concatenate(self.errors)
        # Exact sums, so that they do not depend on the blocks.
        figures = (math.fsum(errors[:, 0]), math.fsum(errors[:, 1]), float(errors[:, 2].max()))
        parts = {name: (self.sizes[name], digest.hexdigest()) for name, digest in self.digests.items()}
        return Slab(self.tensor, self.start, stop, parts, figures)


@dataclass(frozen=True)
class _Block:
    """Rows start..stop of a tensor, and whether its slab ends with them."""

    tensor: TensorPlan
    start: int
    stop: int
    ends_slab: bool


class SlabPipeline:
    """Asks an encoder for everything that is not on the disk yet, in threads."""

    def __init__(
        self,
        encoder: Encoder,
        store: SlabStore,
        pool: ThreadPoolExecutor,
        *,
        num_threads: int,
        on_progress: Progress,
        on_slab: Callable[[], None],
    ) -> None:
        """Prepare; nothing is asked for.

        Args:
            encoder: begun.
            store: restored.
            pool: of the threads.
            num_threads: in the pool.
            on_progress: called with (bytes written, bytes in all, name of the tensor).
            on_slab: called when a slab is on the disk.
        """
        self._encoder, self._store, self._pool = encoder, store, pool
        self._block_bytes = block_bytes(num_threads)
        # While the disk takes a slab, the threads encode another. What waits is encoded, a quarter of float32's size.
        self._window = num_threads + SLAB_BYTES // self._block_bytes + 1
        self._on_progress, self._on_slab = on_progress, on_slab

    def write_all(self, plan: QuantizationPlan) -> tuple[TensorReport, ...]:
        """Write every tensor; returns the reports of the matrices in the order of the file."""
        tensors = list(self._encoder.order(plan.tensors))
        groups = [[tensor] for tensor in tensors] if self._encoder.is_sequential else [tensors]
        for group in groups:
            self._write(group, plan.num_bytes)
        return tuple(self._store.report(tensor) for tensor in plan.tensors if tensor.format != GAIN_FORMAT)

    def _write(self, tensors: list[TensorPlan], total_bytes: int) -> None:
        missing = []
        for tensor in tensors:
            if self._store.next_row(tensor) < tensor.shape[0]:
                missing.append(tensor)
            else:
                self._encoder.done(tensor)
        for block, encoded in self._encoded(self._blocks(missing)):
            self._take(block, encoded)
            self._on_progress(self._store.num_bytes, total_bytes, block.tensor.name)

    def _take(self, block: _Block, encoded: EncodedRows) -> None:
        tensor = block.tensor
        self._store.append(tensor, block.start, encoded)
        is_last = block.stop == tensor.shape[0]
        if is_last:
            for part, values in self._encoder.constants(tensor).items():
                self._store.append_part(tensor, part, values)
        if block.ends_slab:
            self._store.close(block.stop)
            self._on_slab()
        if is_last:
            self._encoder.done(tensor)

    def _encoded(self, blocks: Iterator[_Block]) -> Iterator[tuple[_Block, EncodedRows]]:
        """Encode blocks in threads, a bounded number ahead, and yield them in order."""
        pending: deque[tuple[_Block, Future[EncodedRows]]] = deque()
        for block in blocks:
            future = self._pool.submit(self._encoder.encode, block.tensor, block.start, block.stop)
            pending.append((block, future))
            if len(pending) == self._window:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()

    def _blocks(self, tensors: list[TensorPlan]) -> Iterator[_Block]:
        """The blocks of what is missing; each tensor is prepared while the one before it is encoded."""
        preparing = self._pool.submit(self._encoder.prepare, tensors[0]) if tensors else None
        for number, tensor in enumerate(tensors):
            if preparing is not None:
                preparing.result()
            following = tensors[number + 1 : number + 2]
            preparing = self._pool.submit(self._encoder.prepare, following[0]) if following else None
            rows = tensor.shape[0]
            slab_rows, block_rows = rows_of(tensor, SLAB_BYTES), rows_of(tensor, self._block_bytes)
            for slab_start in range(self._store.next_row(tensor), rows, slab_rows):
                slab_stop = min(slab_start + slab_rows, rows)
                for start in range(slab_start, slab_stop, block_rows):
                    stop = min(start + block_rows, slab_stop)
                    yield _Block(tensor, start, stop, ends_slab=stop == slab_stop)


def rows_of(tensor: TensorPlan, num_bytes: int) -> int:
    """Return how many rows, in whole tiles, take at most that many bytes as float32; a tile at least."""
    columns = math.prod(tensor.shape[1:])
    return max(num_bytes // (4 * columns) // TILE_ROWS, 1) * TILE_ROWS


def block_bytes(num_threads: int) -> int:
    """Return the float32 bytes of a block, of which each thread has one at work."""
    return min(MAX_BLOCK_BYTES, BLOCKS_BUDGET // (num_threads + 1))
