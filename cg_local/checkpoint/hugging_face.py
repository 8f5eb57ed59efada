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
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint.published import EMBEDDING_NAME, HEAD_NAME, Checkpoint
from cg_local.checkpoint.weight_files import find_weight_files
from cg_local.config import ModelConfig, read_config_bytes
from cg_local.errors import CheckpointError
from cg_local.packing import float32_from_bfloat16
from cg_local.safetensors_file import SafetensorsFile, TensorEntry, shown

TERMS_FILES = ("NOTICE", "LICENSE")
DTYPE_BYTES: Mapping[str, int] = {"BF16": 2, "F16": 2, "F32": 4}

# Buffers that older versions of transformers saved with the weights; all are computed from the config.
HARMLESS_NAMES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class HuggingFaceCheckpoint(Checkpoint):
    """Published weights in the Hugging Face layout; `path` is the folder, config.json the first of `source_files`."""

    def __init__(self, path: Path) -> None:
        """Open a folder; see `open_checkpoint`."""
        self._files, weight_paths = find_weight_files(path)
        self.path = path
        self.config_bytes = read_config_bytes(path / "config.json")
        self.config = ModelConfig.from_bytes(self.config_bytes, str(path / "config.json"))
        tokenizer = path / "tokenizer.model"
        self.tokenizer_path = tokenizer if tokenizer.is_file() else None
        paths = (path / "config.json", *weight_paths, self.tokenizer_path)
        self.source_files = tuple(file for file in paths if file is not None)
        self.chat_template = _chat_template(path)
        self.terms = {name: (path / name).read_bytes() for name in TERMS_FILES if (path / name).is_file()}
        # Such weights are no derivative of Gemma's, only of the same architecture.
        self.is_free_of_gemma_terms = b"Apache License" in self.terms.get("LICENSE", b"")
        self._check_tensors()
        self.has_separate_head = HEAD_NAME in self._files and self.head_differs()
        self.notices = self._make_notices()
        head = (HEAD_NAME,) if self.has_separate_head else ()
        self.tensor_names = (*self.config.tensor_shapes(), *head)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of `tensor_names`."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return how a tensor is stored: "BF16", "F16" or "F32"."""
        return self._entry(name).dtype

    def tokenizer_bytes(self) -> bytes | None:
        """Return tokenizer.model; None where the folder has none.

        Raises:
            CheckpointError: it cannot be read.
        """
        if self.tokenizer_path is None:
            return None
        try:
            return self.tokenizer_path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{self.tokenizer_path}: cannot be read ({error.strerror}); check its permissions"
            ) from error

    def _decoded(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        entry = self._entry(name)
        columns = math.prod(entry.shape[1:])
        row_bytes = columns * DTYPE_BYTES[entry.dtype]
        data = self._files[name].read(name, start * row_bytes, stop * row_bytes)
        return _decode(data, entry.dtype).reshape(stop - start, columns)

    def _file_of(self, name: str) -> Path:
        return self._files[name].path

    def _entry(self, name: str) -> TensorEntry:
        return self._files[name].entries[name]

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

    def _make_notices(self) -> tuple[str, ...]:
        if not self.has_separate_head or not self.config.tie_word_embeddings:
            return ()
        return (
            f"{self.path}: {HEAD_NAME} differs from the embedding although config.json ties them; "
            "the stored head is used as the output layer",
        )


def _first_of(names: list[str]) -> str:
    return shown(names[0]) + (f" (the first of {len(names)})" if len(names) > 1 else "")


def _decode(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Widen stored little-endian values to float32, exactly."""
    if dtype == "BF16":
        return float32_from_bfloat16(data.view("<u2"))
    return data.view("<f2" if dtype == "F16" else "<f4").astype(np.float32, copy=False)


def _chat_template(folder: Path) -> str | None:
    """Return the template of chat_template.jinja or tokenizer_config.json; what cannot be read counts as none.

    Source: transformers, tokenization_utils_base.py (a list has named templates, of which "default" is the usual one);
    Google's base models come without, the instruction-tuned ones with it.
    """
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        values = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    template = values.get("chat_template") if isinstance(values, dict) else None
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) and template else None
