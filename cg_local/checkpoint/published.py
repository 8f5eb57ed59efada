"""What every reader of published weights offers, whatever the files look like.

This file owns the interface and what all readers do alike: whole tensors, the check of the values, the comparison of a
stored head with the embedding. It opens no file. Invariant: it holds the values of one slab at a time beside a result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.errors import CheckpointError

EMBEDDING_NAME = "model.embed_tokens.weight"
HEAD_NAME = "lm_head.weight"
SLAB_BYTES = 16 << 20  # of float32; what `tensor` and the head's comparison hold beside their result


class Checkpoint(ABC):
    """Published weights, opened and checked.

    Attributes:
        path: the folder or file.
        config: of the model.
        config_bytes: config.json as it stands in the folder, or as a file without one describes the network.
        tokenizer_path: tokenizer.model, or None where there is no such file.
        source_files: every file that belongs to the checkpoint.
        has_separate_head: whether an output head is stored that differs from the embedding.
        chat_template: the Jinja template published with the weights; None without: they are not tuned for chat.
        notices: one-line things that a user should be told.
        tensor_names: in the order of config.tensor_shapes(), then lm_head.weight if has_separate_head.
        terms: the files of terms and notices that belong to the weights, by name.
        is_free_of_gemma_terms: whether the weights say that they are under other terms than Gemma's.
    """

    path: Path
    config: ModelConfig
    config_bytes: bytes
    tokenizer_path: Path | None
    source_files: tuple[Path, ...]
    has_separate_head: bool
    chat_template: str | None
    notices: tuple[str, ...]
    tensor_names: tuple[str, ...]
    terms: dict[str, bytes]
    is_free_of_gemma_terms: bool

    @property
    def has_chat_template(self) -> bool:
        """Whether a chat template is published with the weights: they are tuned for chat."""
        return self.chat_template is not None

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of `tensor_names`."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Return how a tensor is stored: "BF16", "F16", "F32" or a block type of GGUF."""

    @abstractmethod
    def tokenizer_bytes(self) -> bytes | None:
        """Return the SentencePiece model, serialized; None where the checkpoint has none.

        Raises:
            CheckpointError: it cannot be read, or is of another kind.
        """

    @abstractmethod
    def _decoded(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start..stop as float32 [stop - start, columns], whatever their values."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32.

        Raises:
            CheckpointError: the file shrank since it was opened, or a value is not finite.
        """
        shape = self.shape(name)
        values = np.empty((shape[0], math.prod(shape[1:])), np.float32)
        for start, stop in self._slabs(name):
            values[start:stop] = self.rows(name, start, stop)
        return values.reshape(shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start..stop of a tensor as float32 [stop - start, columns], reading only their bytes.

        The bytes are copied by read calls, not mapped, so that they never count as this process's memory and a file
        that is cut meanwhile is an error message, not a crash. A vector counts as one column. Norm weights are offsets
        from 1, as transformers stores them, whatever the file holds.

        Raises:
            CheckpointError: the file shrank since it was opened, or a value is not finite.
        """
        values = self._decoded(name, start, stop)
        if not np.isfinite(values).all():
            row = start + int(np.argmin(np.isfinite(values).all(axis=1)))
            raise CheckpointError(
                f"{self._file_of(name)}: tensor {name} holds NaN or infinity in row {row}; weights must be finite: "
                "download the file again, or repair the fine-tune"
            )
        return values

    def _file_of(self, name: str) -> Path:
        return self.path

    def _slabs(self, name: str) -> Iterator[tuple[int, int]]:
        num_rows, *rest = self.shape(name)
        step = max(1, SLAB_BYTES // (4 * math.prod(rest)))
        for start in range(0, num_rows, step):
            yield start, min(start + step, num_rows)

    def head_differs(self) -> bool:
        """Compare the stored head with the embedding bit by bit, slab by slab, up to the first difference."""
        for start, stop in self._slabs(EMBEDDING_NAME):
            head = self.rows(HEAD_NAME, start, stop).view(np.uint32)
            if not np.array_equal(head, self.rows(EMBEDDING_NAME, start, stop).view(np.uint32)):
                return True
        return False
