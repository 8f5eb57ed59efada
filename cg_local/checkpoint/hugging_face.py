"""A checkpoint in the Hugging Face layout: config.json, safetensors files, tokenizer.model.

This file owns matching the stored tensors against the config and decoding their rows. Invariant: at any time it holds
the bytes of one slab, never of the whole model; float32 values are exactly those stored (bf16 and f16 widen exactly).

Source of the layout: transformers, models/gemma/modeling_gemma.py and convert_gemma_weights_to_hf.py; the latter stores
a copy of the embedding as lm_head.weight, which some published files (google/codegemma-2b) still carry.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint.foreign_formats import NEEDED, describe_file
from cg_local.checkpoint.weight_files import find_weight_files
from cg_local.config import ModelConfig, read_config_bytes
from cg_local.errors import CheckpointError
from cg_local.packing import float32_from_bfloat16
from cg_local.safetensors_file import SafetensorsFile, TensorEntry, shown

EMBEDDING_NAME = "model.embed_tokens.weight"
HEAD_NAME = "lm_head.weight"
DTYPE_BYTES: Mapping[str, int] = {"BF16": 2, "F16": 2, "F32": 4}
SLAB_BYTES = 16 << 20  # of float32; what `tensor` and the head's comparison hold beside their result

# Buffers that older versions of transformers saved with the weights; all are computed from the config.
HARMLESS_NAMES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class Checkpoint:
    """Published weights, opened and checked.

    Attributes:
        path: the folder.
        config: of the model.
        config_bytes: config.json as it stands in the folder.
        tokenizer_path: tokenizer.model, or None where the folder has none.
        source_files: every file that belongs to the checkpoint, config.json first.
        has_separate_head: whether lm_head.weight is stored and differs from the embedding.
        has_chat_template: whether a chat template is published with the weights: they are tuned for chat.
        notices: one-line things that a user should be told.
        tensor_names: in the order of config.tensor_shapes(), then lm_head.weight if has_separate_head.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder; see `open_checkpoint`."""
        self._files, weight_paths = find_weight_files(path)
        self.path = path
        self.config_bytes = read_config_bytes(path / "config.json")
        self.config = ModelConfig.from_bytes(self.config_bytes, str(path / "config.json"))
        tokenizer = path / "tokenizer.model"
        self.tokenizer_path = tokenizer if tokenizer.is_file() else None
        paths = (path / "config.json", *weight_paths, self.tokenizer_path)
        self.source_files: tuple[Path, ...] = tuple(file for file in paths if file is not None)
        self.has_chat_template = _has_chat_template(path)
        self._check_tensors()
        self.has_separate_head = HEAD_NAME in self._files and self._head_differs()
        self.notices = self._make_notices()
        head = (HEAD_NAME,) if self.has_separate_head else ()
        self.tensor_names: tuple[str, ...] = (*self.config.tensor_shapes(), *head)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of `tensor_names`."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return how a tensor is stored: "BF16", "F16" or "F32"."""
        return self._entry(name).dtype

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
        that is cut meanwhile is an error message, not a crash. A vector counts as one column.

        Raises:
            CheckpointError: the file shrank since it was opened, or a value is not finite.
        """
        entry = self._entry(name)
        columns = math.prod(entry.shape[1:])
        row_bytes = columns * DTYPE_BYTES[entry.dtype]
        data = self._files[name].read(name, start * row_bytes, stop * row_bytes)
        values = _decode(data, entry.dtype).reshape(stop - start, columns)
        if not np.isfinite(values).all():
            row = start + int(np.argmin(np.isfinite(values).all(axis=1)))
            raise CheckpointError(
                f"{self._files[name].path}: tensor {name} holds NaN or infinity in row {row}; weights must be finite: "
                "download the file again, or repair the fine-tune"
            )
        return values

    def _entry(self, name: str) -> TensorEntry:
        return self._files[name].entries[name]

    def _slabs(self, name: str) -> Iterator[tuple[int, int]]:
        num_rows, *rest = self.shape(name)
        step = max(1, SLAB_BYTES // (4 * math.prod(rest)))
        for start in range(0, num_rows, step):
            yield start, min(start + step, num_rows)

    def _check_tensors(self) -> None:
        """Compare names, shapes and types of all stored tensors with the config's."""
        needed = self.config.tensor_shapes()
        missing = [name for name in needed if name not in self._files]
        tolerated = {*needed, HEAD_NAME}
        spare = [name for name in self._files if name not in tolerated and not HARMLESS_NAMES.fullmatch(name)]
        if missing:
            found = f"; found instead {_first_of(spare)}" if spare else ""
            raise CheckpointError(
                f"{self.path}: tensor {_first_of(missing)} is missing{found}; config.json and weights do not belong "
                "together or the download is not complete: download the folder again"
            )
        if spare:
            raise CheckpointError(
                f"{self._files[spare[0]].path}: tensor {_first_of(spare)} is not part of the network that config.json "
                "describes; use an unmodified Gemma 1 or CodeGemma checkpoint (merge adapters before)"
            )
        if HEAD_NAME in self._files:
            needed[HEAD_NAME] = needed[EMBEDDING_NAME]
        elif not self.config.tie_word_embeddings:
            raise CheckpointError(
                f"{self.path}: tensor {HEAD_NAME} is missing and config.json says tie_word_embeddings false; "
                "download the folder again"
            )
        for name, shape in needed.items():
            self._check_entry(self._files[name], self._entry(name), shape)

    def _check_entry(self, file: SafetensorsFile, entry: TensorEntry, shape: tuple[int, ...]) -> None:
        if entry.shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, config.json needs {list(shape)}; "
                "weights and config.json do not belong together: download the folder again"
            )
        if entry.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"{file.path}: tensor {entry.name} is stored as {entry.dtype}; needed is one of "
                f"{', '.join(DTYPE_BYTES)}: use the original weights, not a quantized copy"
            )

    def _head_differs(self) -> bool:
        """Compare lm_head.weight with the embedding bit by bit, slab by slab, up to the first difference."""
        for start, stop in self._slabs(EMBEDDING_NAME):
            head = self.rows(HEAD_NAME, start, stop).view(np.uint32)
            if not np.array_equal(head, self.rows(EMBEDDING_NAME, start, stop).view(np.uint32)):
                return True
        return False

    def _make_notices(self) -> tuple[str, ...]:
        if not self.has_separate_head or not self.config.tie_word_embeddings:
            return ()
        return (
            f"{self.path}: {HEAD_NAME} differs from the embedding although config.json ties them; "
            "the stored head is used as the output layer",
        )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open published weights in the Hugging Face layout.

    Args:
        path: a folder with config.json and model.safetensors, or model.safetensors.index.json and its shards.

    Raises:
        CheckpointError: no such folder, another format (named), a damaged file, tensors that are missing, spare, of
            another shape or type than the config says.
        ConfigError: config.json is missing, malformed or describes another network.
    """
    folder = Path(path)
    try:
        if not folder.exists():
            raise CheckpointError(f"{folder}: no such folder; {NEEDED}")
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: found {describe_file(folder)}; {NEEDED}")
        return Checkpoint(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}; check the path and its permissions") from error


def _first_of(names: list[str]) -> str:
    return shown(names[0]) + (f" (the first of {len(names)})" if len(names) > 1 else "")


def _decode(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Widen stored little-endian values to float32, exactly."""
    if dtype == "BF16":
        return float32_from_bfloat16(data.view("<u2"))
    return data.view("<f2" if dtype == "F16" else "<f4").astype(np.float32, copy=False)


def _has_chat_template(folder: Path) -> bool:
    """Whether tokenizer_config.json or a file of its own holds one; what cannot be read counts as none.

    Source: transformers, tokenization_utils_base.py (chat_template of tokenizer_config.json, chat_template.jinja);
    Google's base models come without, the instruction-tuned ones with it.
    """
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        values = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))
