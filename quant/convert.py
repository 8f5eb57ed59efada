"""From published weights to a model folder: opens both ends, goes on with interrupted work, records what was done.

This file owns what a conversion consists of and what a person is told about interrupted work. How rows become bytes is
`slabs` and `encoder`. Invariant: what the model folder holds follows from the source, the options and the version of
cg-local alone; times, threads and interruptions leave no trace in it (gptq's are BLAS's sums: on one machine the same).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from cg_local.checkpoint import Checkpoint, open_checkpoint
from cg_local.errors import CheckpointError
from cg_local.model_folder import FORMAT_VERSION
from cg_local.model_folder_writer import ModelFolderWriter, check_destination
from cg_local.packing import PackedMatrix
from cg_local.quant import slabs
from cg_local.quant.encoder import Encoder, Workplace
from cg_local.quant.fixed_order import single_threaded_blas, threads, usable_cores
from cg_local.quant.journal import Journal
from cg_local.quant.methods import prepared, required_tokenizer
from cg_local.quant.options import Options
from cg_local.quant.report import QuantizationReport, TensorReport, quality_document, quality_draft
from cg_local.quant.schemes import QuantizationPlan
from cg_local.quant.source_files import SourceFiles
from cg_local.quant.work_plan import code_identity, package_version

JOURNAL_VERSION = 1
METHOD_FOLDER = "method"
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
    "\nmodified: quantized by cg-local\n"
)

Notice = Callable[[str], None]


@single_threaded_blas()
def convert(
    source: Path,
    destination: Path,
    options: Options,
    *,
    overwrite: bool,
    restart: bool,
    is_resumable: bool,
    on_progress: slabs.Progress | None,
    on_notice: Notice | None,
    num_threads: int | None,
) -> QuantizationReport:
    """Do the work of `cg_local.quant.quantize`, where the arguments are described."""
    started = time.perf_counter()
    # Choosing formats and texts takes minutes: what cannot be is refused before.
    check_destination(Path(os.path.abspath(destination)), overwrite=overwrite)
    checkpoint = open_checkpoint(source)
    required_tokenizer(checkpoint)
    conversion = _Conversion(checkpoint, *prepared(checkpoint, options), on_notice)
    with conversion.opened(destination, overwrite=overwrite, is_resumable=is_resumable) as writer:
        for text in conversion.plan.notices:  # before the work, which may take an hour
            conversion.tell(text)
        reports = conversion.run(
            writer,
            restart=restart,
            is_resumable=is_resumable,
            num_threads=num_threads or usable_cores(),
            on_progress=on_progress or (lambda done, total, tensor: None),
        )
    return QuantizationReport(
        destination=destination,
        scheme=conversion.plan.scheme,
        tensors=reports,
        num_bytes=conversion.plan.num_bytes,
        bits_per_weight=conversion.plan.bits_per_weight,
        elapsed_seconds=time.perf_counter() - started,
        notices=conversion.plan.notices,
    )


class _Conversion:
    """What goes in, how, and what is said about it."""

    def __init__(
        self, checkpoint: Checkpoint, plan: QuantizationPlan, encoder: Encoder, on_notice: Notice | None
    ) -> None:
        self._checkpoint, self.plan, self._encoder = checkpoint, plan, encoder
        self._files = SourceFiles(checkpoint.source_files)
        self.tell = on_notice or (lambda text: None)

    def opened(self, destination: Path, *, overwrite: bool, is_resumable: bool) -> ModelFolderWriter:
        """The writer, not yet entered."""
        sources = {name: {"bytes": 1 << 62, "sha256": "0" * 64} for name in self._files.stamps}
        return ModelFolderWriter(
            destination,
            config=self._checkpoint.config,
            config_bytes=self._checkpoint.config_bytes,
            tokenizer_bytes=required_tokenizer(self._checkpoint),
            notices=_notices(self._checkpoint),
            scheme=self.plan.scheme,
            formats=self.plan.formats,
            draft=self._details(quality_draft(tuple(self.plan.formats)), sources),
            overwrite=overwrite,
            keeps_work=is_resumable,
            workspace_bytes=self._encoder.workspace_bytes,
        )

    def run(
        self,
        writer: ModelFolderWriter,
        *,
        restart: bool,
        is_resumable: bool,
        num_threads: int,
        on_progress: slabs.Progress,
    ) -> tuple[TensorReport, ...]:
        """Write what is missing, and finish; what keeps it from that leaves the work behind where it is of use."""
        journal = Journal(writer.workspace, self._plan_document(writer)) if is_resumable else None
        try:
            with ExitStack() as stack:
                if journal is not None:
                    self._judge_leftovers(writer, journal, restart)
                    stack.enter_context(journal)
                pool = threads(num_threads, "quantize")
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
                stack.enter_context(self._files).begin(journal.source_digests if journal else {})
                store = slabs.SlabStore(writer, journal)
                store.restore(self.plan.tensors, pool)
                self._tell_of_restored(writer, journal, store)
                self._begin_encoder(writer, store, num_threads)
                pipeline = slabs.SlabPipeline(
                    self._encoder,
                    store,
                    pool,
                    num_threads=num_threads,
                    on_progress=on_progress,
                    on_slab=lambda: self._record_sources(journal),
                )
                reports = pipeline.write_all(self.plan)
                writer.finish(self._details(quality_document(reports), self._files.result()))
        except BaseException as error:
            self._settle(writer, journal, error)
            raise
        return reports

    def _judge_leftovers(self, writer: ModelFolderWriter, journal: Journal, restart: bool) -> None:
        """Remove what an interrupted run left, where it is of other work or not wanted."""
        obstacle = None if restart else journal.obstacle()
        if obstacle is not None:
            self.tell(f"{writer.workspace}: unfinished work cannot be continued ({obstacle}); it is begun anew")
        if obstacle is not None or restart:
            writer.clear()

    def _tell_of_restored(self, writer: ModelFolderWriter, journal: Journal | None, store: slabs.SlabStore) -> None:
        if journal is not None and journal.damage:
            self.tell(journal.damage)
        if store.damaged:
            more = f" and {len(store.damaged) - 1} more" if len(store.damaged) > 1 else ""
            self.tell(f"{writer.workspace}: {store.damaged[0]}{more}: damaged since it was written; redone from there")
        if store.num_bytes:
            self.tell(f"{writer.destination}: continues at {self._percent(store.num_bytes)} %")

    def _begin_encoder(self, writer: ModelFolderWriter, store: slabs.SlabStore, num_threads: int) -> None:
        folder = writer.workspace / METHOD_FOLDER
        folder.mkdir(exist_ok=True)
        tensors = {tensor.name: tensor for tensor in self.plan.tensors}

        def packed(name: str) -> PackedMatrix:
            return store.packed(tensors[name])

        self._encoder.begin(Workplace(folder, packed, num_threads))

    def _record_sources(self, journal: Journal | None) -> None:
        for name, digest in self._files.finished().items():
            if journal is not None and name not in journal.source_digests:
                journal.add_source(name, digest)

    def _settle(self, writer: ModelFolderWriter, journal: Journal | None, error: BaseException) -> None:
        """Say what stays after a failure, or let it go when it is of no use."""
        if journal is None or _is_fault_of_the_source(error) or not self._holds_work(writer, journal):
            writer.discard()
        elif journal.is_read:
            self.tell(
                f"{writer.workspace}: {writer.work_bytes / (1 << 20):,.1f} MiB of work are kept; the same command "
                f"continues at {self._percent(journal.num_bytes)} %, with --restart it begins anew"
            )

    def _holds_work(self, writer: ModelFolderWriter, journal: Journal) -> bool:
        if not journal.is_read:
            return writer.found_work
        return journal.num_bytes > 0 or any((writer.workspace / METHOD_FOLDER).glob("*"))

    def _percent(self, num_bytes: int) -> int:
        return 100 * num_bytes // self.plan.num_bytes

    def _plan_document(self, writer: ModelFolderWriter) -> dict[str, object]:
        """Everything that the bytes depend on."""
        extents = writer.extents
        tensors = {
            tensor.name: {
                "format": tensor.format,
                "shape": tensor.shape,
                "parts": {name: extents[name] for name in extents if _belongs(name, tensor.name)},
            }
            for tensor in self.plan.tensors
        }
        return {
            "quantizer": {
                **code_identity(),
                **{"format_version": FORMAT_VERSION, "journal_version": JOURNAL_VERSION},
                "slab_bytes": slabs.SLAB_BYTES,
            },
            "options": self._options,
            "sources": self._files.stamps,
            "tensors": tensors,
        }

    @property
    def _options(self) -> dict[str, object]:
        return {"scheme": self.plan.scheme, **self._encoder.options}

    def _details(self, quality: Mapping[str, object], sources: Mapping[str, object]) -> dict[str, object]:
        """Members of the metadata document beside those that the writer adds."""
        return {
            "quantizer": {"version": package_version(), "options": self._options},
            "sources": dict(sources),
            "has_chat_template": self._checkpoint.has_chat_template,
            "bits_per_weight": round(self.plan.bits_per_weight, 4),
            "quality": dict(quality),
        }


def _is_fault_of_the_source(error: BaseException) -> bool:
    """Whether the weights themselves were refused, which doing it again would not change; not a disk that failed."""
    is_refusal = isinstance(error, CheckpointError) or isinstance(error.__cause__, OverflowError)
    return is_refusal and not isinstance(error.__cause__, OSError)


def _belongs(part: str, tensor: str) -> bool:
    return part == tensor or part.startswith(f"{tensor}.")


def _notices(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The source's own terms, and Gemma's notice, which every derivative of it must bear.

    Source: Gemma Terms of Use, section 3.1."""
    own = dict(checkpoint.terms)
    if not checkpoint.is_free_of_gemma_terms:
        own["NOTICE"] = own.get("NOTICE", b"") + GEMMA_NOTICE.encode("ascii")
    return own
