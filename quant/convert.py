"""Streaming conversion: slabs of rows through the search into a model folder.

This file owns the order of work, the threads and the memory bound. It knows no format's details (`encode`) and no
file's layout (`model_folder_writer`). Invariant: the slabs in memory together hold at most SLAB_BUDGET bytes of
float32, and they are written in order, so the bytes of every tensor are the same for every number of threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint, open_checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder_writer import ModelFolderWriter
from cg_local.packing import CODEBOOK_SIZES, GROUP, TILE_ROWS, pack_codebook
from cg_local.quant.encode import EncodedRows, encode_rows, learn_codebook
from cg_local.quant.report import QuantizationReport, TensorReport, quality_document, quality_draft
from cg_local.quant.schemes import QuantizationPlan, TensorPlan, plan_checkpoint

SLAB_BUDGET = 128 << 20  # float32 bytes of all slabs at work together; the search needs about twice that beside
MAX_SLAB_BYTES = 16 << 20
SAMPLE_GROUPS = 8192  # groups of a codebook's sample; four times as many changed no codebook's error by 0.01 dB
HASH_BYTES = 4 << 20
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
    "\nmodified: quantized by cg-local\n"
)

Progress = Callable[[int, int, str], None]


def convert(
    source: Path,
    destination: Path,
    scheme: str,
    *,
    overwrite: bool,
    on_progress: Progress | None,
    num_threads: int | None,
) -> QuantizationReport:
    """Do the work of `cg_local.quant.quantize`, where the arguments are described."""
    started = time.perf_counter()
    checkpoint = open_checkpoint(source)
    plan = plan_checkpoint(checkpoint, scheme)
    threads = num_threads or _usable_cores()
    with (
        _writer(checkpoint, plan, destination, overwrite) as writer,
        _SourceDigests(checkpoint.source_files) as digests,
        ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool,
    ):
        conversion = _Conversion(checkpoint, writer, pool, threads, plan.num_bytes, on_progress)
        try:
            reports = conversion.write_all(plan.tensors)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        elapsed = time.perf_counter() - started
        writer.finish(_details(checkpoint, quality_document(reports), digests.result(), plan, round(elapsed, 1)))
    return QuantizationReport(
        destination=destination,
        scheme=scheme,
        tensors=reports,
        num_bytes=plan.num_bytes,
        bits_per_weight=plan.bits_per_weight,
        elapsed_seconds=elapsed,
        notices=plan.notices,
    )


class _Conversion:
    """The state of one run: where tensors come from and go to, and how far it is."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        writer: ModelFolderWriter,
        pool: ThreadPoolExecutor,
        threads: int,
        total_bytes: int,
        on_progress: Progress | None,
    ) -> None:
        self._checkpoint, self._writer, self._pool = checkpoint, writer, pool
        self._window = threads + 1
        self._slab_bytes = min(MAX_SLAB_BYTES, SLAB_BUDGET // self._window)
        self._done_bytes, self._total_bytes = 0, total_bytes
        self._on_progress = on_progress or (lambda done, total, tensor: None)

    def write_all(self, tensors: tuple[TensorPlan, ...]) -> tuple[TensorReport, ...]:
        """Convert tensors in order; the codebook of each is learned while the one before it is converted."""
        reports = []
        book = self._learn(tensors[0])
        for tensor, following in zip(tensors, (*tensors[1:], None), strict=True):
            next_book = self._learn(following) if following else None
            if tensor.format == "f32":
                self._write_gain(tensor)
            else:
                reports.append(self._write_matrix(tensor, book.result() if book else None))
            book = next_book
        return tuple(reports)

    def _learn(self, tensor: TensorPlan) -> Future[NDArray[np.int64]] | None:
        if tensor.format not in CODEBOOK_SIZES:
            return None
        return self._pool.submit(lambda: learn_codebook(self._sample(tensor), tensor.format))

    def _write_gain(self, tensor: TensorPlan) -> None:
        # Gemma stores norm weights as offsets from 1. Source: google/gemma_pytorch, gemma/model.py, RMSNorm.
        self._append(tensor.name, tensor.name, self._checkpoint.tensor(tensor.name) + np.float32(1.0))

    def _write_matrix(self, tensor: TensorPlan, book: NDArray[np.int64] | None) -> TensorReport:
        errors = []
        for encoded in self._encoded_slabs(tensor, book):
            for part, values in encoded.parts.items():
                self._append(tensor.name, f"{tensor.name}.{part}", values)
            errors.append(encoded.errors)
        if book is not None:
            self._append(tensor.name, f"{tensor.name}.codebook", pack_codebook(book))
        return TensorReport.from_errors(tensor.name, tensor.format, np.concatenate(errors))

    def _append(self, tensor: str, part: str, values: NDArray[np.generic]) -> None:
        self._writer.append(part, values)
        self._done_bytes += values.nbytes
        self._on_progress(self._done_bytes, self._total_bytes, tensor)

    def _encoded_slabs(self, tensor: TensorPlan, book: NDArray[np.int64] | None) -> Iterator[EncodedRows]:
        """Encode slabs in threads, a bounded number ahead, and yield them in order."""
        rows, columns = tensor.shape
        step = max(self._slab_bytes // (4 * columns) // TILE_ROWS, 1) * TILE_ROWS
        pending: deque[Future[EncodedRows]] = deque()
        for start in range(0, rows, step):
            pending.append(self._pool.submit(self._encode, tensor, start, min(start + step, rows), book))
            if len(pending) == self._window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _encode(self, tensor: TensorPlan, start: int, stop: int, book: NDArray[np.int64] | None) -> EncodedRows:
        x = self._checkpoint.rows(tensor.name, start, stop)
        try:
            return encode_rows(tensor.format, x, book)
        except OverflowError as cause:
            raise QuantizeError(
                f"{self._checkpoint.path}: tensor {tensor.name}, rows {start} to {stop - 1}: {cause}; "
                "use --scheme bf16 or repair the fine-tune"
            ) from cause

    def _sample(self, tensor: TensorPlan) -> NDArray[np.float32]:
        """Rows at even distances over the tensor, at least a tile, SAMPLE_GROUPS groups where there are so many."""
        rows, columns = tensor.shape
        wanted = min(rows, max(TILE_ROWS, SAMPLE_GROUPS // (columns // GROUP)))
        numbers = [number * rows // wanted for number in range(wanted)]
        return np.concatenate([self._checkpoint.rows(tensor.name, row, row + 1) for row in numbers])


class _SourceDigests:
    """SHA-256 of the source files, computed in a thread of its own beside the conversion."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def __enter__(self) -> _SourceDigests:
        self._result = self._pool.submit(self._digest_all)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def result(self) -> dict[str, dict[str, object]]:
        """Wait for the digests: {name: {"bytes", "sha256"}}."""
        return self._result.result()

    def _digest_all(self) -> dict[str, dict[str, object]]:
        return {path.name: self._digest(path) for path in self._paths}

    def _digest(self, path: Path) -> dict[str, object]:
        digest, num_bytes = hashlib.sha256(), 0
        try:
            with path.open("rb", buffering=0) as file:
                while not self._stop.is_set() and (data := file.read(HASH_BYTES)):
                    digest.update(data)
                    num_bytes += len(data)
        except OSError as cause:
            raise QuantizeError(f"{path}: cannot be read ({cause.strerror}); check the disk") from cause
        return {"bytes": num_bytes, "sha256": digest.hexdigest()}


def _writer(checkpoint: Checkpoint, plan: QuantizationPlan, destination: Path, overwrite: bool) -> ModelFolderWriter:
    tokenizer = checkpoint.tokenizer_bytes()
    if tokenizer is None:
        raise QuantizeError(
            f"{checkpoint.path}: tokenizer.model is missing; download it from the model's page into this folder"
        )
    sources = {path.name: {"bytes": 1 << 62, "sha256": "0" * 64} for path in checkpoint.source_files}
    return ModelFolderWriter(
        destination,
        config=checkpoint.config,
        config_bytes=checkpoint.config_bytes,
        tokenizer_bytes=tokenizer,
        notices=_notices(checkpoint),
        scheme=plan.scheme,
        formats=plan.formats,
        draft=_details(checkpoint, quality_draft(tuple(plan.formats)), sources, plan, -1.23456e300),
        overwrite=overwrite,
    )


def _notices(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The source's own terms, and Gemma's notice, which every derivative of it must bear.

    Source: Gemma Terms of Use, section 3.1."""
    own = dict(checkpoint.terms)
    if not checkpoint.is_free_of_gemma_terms:
        own["NOTICE"] = own.get("NOTICE", b"") + GEMMA_NOTICE.encode("ascii")
    return own


def _details(
    checkpoint: Checkpoint,
    quality: Mapping[str, object],
    sources: Mapping[str, object],
    plan: QuantizationPlan,
    elapsed_seconds: float,
) -> dict[str, object]:
    """Members of the metadata document beside those that the writer adds."""
    return {
        "quantizer": {"version": _package_version(), "options": {"scheme": plan.scheme, "search": "data-free"}},
        "sources": dict(sources),
        "has_chat_template": checkpoint.has_chat_template,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "elapsed_seconds": elapsed_seconds,
        "quality": dict(quality),
    }


def _package_version() -> str:
    try:
        return version("cg-local")
    except PackageNotFoundError:
        return "unknown"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
