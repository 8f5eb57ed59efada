"""What the conversion asks a method of quantization for, and the methods that need no texts: `fast` and `imp`.

This file owns the interface between the two: which tensors, which rows, when a tensor is done, where a method may keep
files of its own. It writes no weights and knows no threads. Invariant: what an encoder returns for a row depends on the
source and the encoder's options alone, not on how rows are cut into calls, on threads, or on interruptions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING
from cg_local.packing import CODEBOOK_SIZES, GROUP, TILE_ROWS, Array, PackedMatrix, pack_codebook
from cg_local.quant.encode import EncodedRows, Guide, encode_rows, learn_codebook
from cg_local.quant.feedback import LowRankFeedback
from cg_local.quant.importance import ImportancePack
from cg_local.quant.schemes import GAIN_FORMAT, TensorPlan

SAMPLE_GROUPS = 8192  # groups of a codebook's sample; four times as many changed no codebook's error by 0.01 dB


@dataclass(frozen=True)
class Workplace:
    """What a conversion offers its encoder.

    Attributes:
        folder: for files of the encoder's own, there again after an interruption and gone with the finished model. What
            they say must be sound after a kill at any moment: write them beside their place, sync and rename.
        packed: returns a finished matrix as it stands in the file, by name; after `Encoder.done` of it.
        num_threads: that `Encoder.prepare` may have at work where the method is sequential; no result depends on it.
    """

    folder: Path
    packed: Callable[[str], PackedMatrix]
    num_threads: int


class Encoder(ABC):
    """A method of quantization, asked for the rows of one tensor after another.

    `begin` comes first, once. Then for each tensor, in the encoder's order: `prepare`, `encode` for the rows that are
    not on the disk yet, `constants`, `done`. Of a tensor that an earlier run finished only `done` is called.

    Attributes:
        options: everything that the method's results depend on beside the source, JSON values; recorded in the model,
            and work begun with others is not gone on with.
        is_sequential: a tensor is prepared only when all those before it are done. If not, `prepare` of one runs beside
            `encode` of the one before, and `done` is called late, but in order.
        workspace_bytes: what its files in the `Workplace` take on the disk at most.
    """

    options: Mapping[str, object]
    is_sequential: bool = False
    workspace_bytes: int = 0

    def begin(self, place: Workplace) -> None:  # noqa: B027 (most methods keep nothing)
        """Take note of where files of the method's own may lie."""

    def order(self, tensors: Sequence[TensorPlan]) -> Sequence[TensorPlan]:
        """Return the tensors in the order in which the method wants them; the file's order does not follow."""
        return tensors

    def prepare(self, tensor: TensorPlan) -> None:  # noqa: B027
        """Get ready for `encode` of a tensor's rows; may take long."""

    @abstractmethod
    def encode(self, tensor: TensorPlan, start: int, stop: int) -> EncodedRows:
        """Return rows start..stop, whole tiles of them except at the end. Called in several threads at once.

        The parts are named as in the model folder, "" the values of a norm gain.

        Raises:
            CheckpointError: the rows cannot be read, or hold what no format can.
            QuantizeError: they are beyond the format's range.
        """

    def constants(self, tensor: TensorPlan) -> Mapping[str, Array]:
        """Return the parts that a matrix has once: its codebook."""
        return {}

    def done(self, tensor: TensorPlan) -> None:  # noqa: B027
        """Take note that all rows are on the disk, and forget what `prepare` kept."""


class SearchEncoder(Encoder):
    """Codebooks, scales and codes by least squares on the weights alone: the method `fast`, and the frame of others."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Prepare; nothing is read.

        Args:
            checkpoint: the source.
        """
        self._checkpoint = checkpoint
        self._books: dict[str, NDArray[np.int64]] = {}
        self._guides: dict[str, Guide | None] = {}
        self.options = {"method": "fast"}

    def guide_of(self, tensor: TensorPlan) -> Guide | None:
        """Return what is known of a matrix's inputs; None: nothing."""
        return None

    def prepare(self, tensor: TensorPlan) -> None:
        """Find out about the inputs and learn the codebook, where the format has one."""
        if tensor.format in (GAIN_FORMAT, "bf16"):
            return
        guide = self.guide_of(tensor)
        if tensor.format in CODEBOOK_SIZES:
            sample = sample_rows(self._checkpoint, tensor.name, tensor.shape)
            self._books[tensor.name] = learn_codebook(sample, tensor.format, guide)
        self._guides[tensor.name] = guide

    def encode(self, tensor: TensorPlan, start: int, stop: int) -> EncodedRows:
        """Search codes and scales of rows."""
        x = self._checkpoint.rows(tensor.name, start, stop)
        if tensor.format == GAIN_FORMAT:
            # Gemma stores norm weights as offsets from 1. Source: google/gemma_pytorch, gemma/model.py, RMSNorm.
            return EncodedRows({"": x + np.float32(1.0)}, np.zeros((len(x), 3)))
        try:
            return encode_rows(tensor.format, x, self._books.get(tensor.name), self._guides.get(tensor.name))
        except OverflowError as cause:
            raise QuantizeError(
                f"{self._checkpoint.path}: tensor {tensor.name}, rows {start} to {stop - 1}: {cause}; "
                "use --scheme bf16 or repair the fine-tune"
            ) from cause

    def constants(self, tensor: TensorPlan) -> Mapping[str, Array]:
        """Return the codebook."""
        return {"codebook": pack_codebook(self._books[tensor.name])} if tensor.name in self._books else {}

    def done(self, tensor: TensorPlan) -> None:
        """Forget codebook and guide."""
        self._books.pop(tensor.name, None)
        self._guides.pop(tensor.name, None)


class ImportanceEncoder(SearchEncoder):
    """The search with columns weighted, and errors fed back, by an importance pack: the method `imp`."""

    def __init__(self, checkpoint: Checkpoint, pack: ImportancePack) -> None:
        """Prepare; nothing is read.

        Args:
            checkpoint: the source.
            pack: statistics of the inputs of all its matrices.
        """
        super().__init__(checkpoint)
        self._pack = pack
        self.options = {"method": "imp", "importance": pack.digest}

    def guide_of(self, tensor: TensorPlan) -> Guide | None:
        """Return the pack's statistics, made ready for rounding."""
        return guide_by(self._pack, tensor.name, self._checkpoint)


def guide_by(pack: ImportancePack, name: str, checkpoint: Checkpoint) -> Guide | None:
    """Return a pack's statistics of a matrix's inputs, made ready for rounding.

    The errors of an embedding that is the head, too, are weighted but not fed back: as a table of inputs it has no sum
    in which one column could make up for another, and feedback was measured to gain nothing there. Beside a separate
    head it is such a table only, and nothing is known of its columns.
    """
    found = pack.of(name)
    if name == EMBEDDING:
        return None if checkpoint.has_separate_head else Guide(found.mean_square)
    return Guide(found.mean_square, LowRankFeedback.of(*found.as_doubles))


def sample_rows(checkpoint: Checkpoint, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return rows at even distances over a matrix, at least a tile, SAMPLE_GROUPS groups where there are so many."""
    rows, columns = shape
    wanted = min(rows, max(TILE_ROWS, SAMPLE_GROUPS // max(columns // GROUP, 1)))
    numbers = [number * rows // wanted for number in range(wanted)]
    return np.concatenate([checkpoint.rows(name, row, row + 1) for row in numbers])
