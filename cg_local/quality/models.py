"""The models of a comparison, opened: the published weights and what was made of them.

Owns what a path may be, whether a model can be compared with the reference, and its size. It computes nothing.
Invariant: the size of a model is that of its tensors, without vocabulary, metadata and rows of padding, counted alike
for a model folder, a GGUF file and published weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cg_local.checkpoint import Checkpoint, open_checkpoint
from cg_local.checkpoint.gguf_checkpoint import GgufCheckpoint
from cg_local.checkpoint.gguf_container import TYPES, GgufContainer
from cg_local.config import ModelConfig
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.errors import QualityError
from cg_local.model_folder import ModelFolder, open_model_folder
from cg_local.model_store import is_model_folder
from cg_local.quant.hidden_states import RowSource
from cg_local.tokenizer import Tokenizer

FOLDER, GGUF, PUBLISHED = "model folder", "GGUF", "published weights"
BLOCK_TYPES = {block.name: block for block in TYPES.values()}
COMPARED_FIELDS = (
    *("vocab_size", "hidden_size", "num_layers", "intermediate_size"),
    *("num_heads", "num_kv_heads", "head_dim"),
)
HASH_BYTES = 16 << 20
TOKENIZER_SETTINGS = "tokenizer_config.json"
ADD_BOS = "tokenizer.ggml.add_bos_token"


@dataclass(frozen=True)
class Reference:
    """Published weights that others are compared with.

    Attributes:
        name: as a person calls it.
        checkpoint: opened.
        tokenizer: its own.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer

    def digest(self) -> str:
        """Return the SHA-256 over the digests of its files; reads them."""
        total = hashlib.sha256()
        for path in sorted(self.checkpoint.source_files, key=lambda path: path.name):
            total.update(f"{path.name}:{_file_digest(path)}\n".encode())
        return total.hexdigest()


@dataclass(frozen=True)
class ComparedModel:
    """A model that is compared.

    Attributes:
        name: of its folder, or of its file without the ending.
        kind: FOLDER, GGUF or PUBLISHED.
        path: of the folder or file.
        source: its weights in float32.
        formats: how many weights are stored in each format.
        num_bytes: of all tensors.
        folder: of a model folder.
    """

    name: str
    kind: str
    path: Path
    source: RowSource
    formats: dict[str, int]
    num_bytes: int
    folder: ModelFolder | None = None

    @property
    def num_weights(self) -> int:
        """Weights in all tensors."""
        return sum(self.formats.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights, scales and codebooks included."""
        return 8 * self.num_bytes / self.num_weights


def open_reference(name: str, path: Path) -> Reference:
    """Open published weights to compare with.

    Raises:
        CheckpointError, ConfigError, TokenizerError: they cannot be read.
        QualityError: they have no tokenizer, or say that texts do not begin with <bos>.
    """
    if is_model_folder(path):
        raise QualityError(
            f"{path}: a model folder, whose weights are rounded; the reference must be the published weights it was "
            "made from"
        )
    checkpoint = open_checkpoint(path)
    model = checkpoint.tokenizer_bytes()
    if model is None:
        raise QualityError(f"{path}: no tokenizer.model, which the texts are encoded with; add the published one")
    tokenizer = Tokenizer.from_bytes(model, str(path))
    tokenizer.check_rows(checkpoint.config.vocab_size, str(path))
    _check_bos(checkpoint, tokenizer)
    return Reference(name, checkpoint, tokenizer)


def open_compared(path: Path, reference: Reference) -> ComparedModel:
    """Open a model and check that it is of the reference's kind.

    Args:
        path: model folder, GGUF file, or folder of published weights.
        reference: what it will be compared with.

    Raises:
        ModelFolderError, CheckpointError, ConfigError: it cannot be read.
        QualityError: another network or vocabulary than the reference's.
    """
    if is_model_folder(path):
        folder = open_model_folder(path)
        model = _of_folder(folder)
        tokenizer: bytes | None = folder.tokenizer_path.read_bytes()
    else:
        checkpoint = open_checkpoint(path)
        model = _of_checkpoint(checkpoint)
        # A GGUF file's tokenizer is rebuilt and differs in what does not matter; its ids are the pieces' order.
        tokenizer = None if isinstance(checkpoint, GgufCheckpoint) else checkpoint.tokenizer_bytes()
    _check_same_network(path, model.source.config, reference)
    if tokenizer is not None and not isinstance(reference.checkpoint, GgufCheckpoint):
        theirs = reference.checkpoint.tokenizer_bytes()
        if tokenizer != theirs:
            raise QualityError(
                f"{path}: its tokenizer.model is not that of {reference.name}; compare what is made of it"
            )
    return model


def _of_folder(folder: ModelFolder) -> ComparedModel:
    formats = Counter({"f32": sum(gain.size for gain in folder.gains.values())})
    for matrix in folder.matrices.values():
        formats[matrix.format] += math.prod(matrix.shape)
    num_bytes = sum(matrix.num_bytes for matrix in folder.matrices.values())
    num_bytes += sum(gain.nbytes for gain in folder.gains.values())
    name = _named(folder.path).name
    return ComparedModel(name, FOLDER, folder.path, DequantizedFolder(folder), dict(formats), num_bytes, folder)


def _of_checkpoint(checkpoint: Checkpoint) -> ComparedModel:
    formats, num_bytes = Counter[str](), 0
    for name in checkpoint.tensor_names:
        block, size = BLOCK_TYPES[checkpoint.dtype(name)], math.prod(checkpoint.shape(name))
        formats[block.name.lower()] += size
        num_bytes += size // block.num_values * block.num_bytes
    is_gguf = isinstance(checkpoint, GgufCheckpoint)
    path = checkpoint.path
    name = _named(path).stem if is_gguf else _named(path).name
    return ComparedModel(name, GGUF if is_gguf else PUBLISHED, path, checkpoint, dict(formats), num_bytes)


def _named(path: Path) -> Path:
    """Return a path with a name, "." too; a link keeps its own."""
    return Path(os.path.abspath(path))


def _check_same_network(path: Path, config: ModelConfig, reference: Reference) -> None:
    ours = reference.checkpoint.config
    for field in COMPARED_FIELDS:
        found, needed = getattr(config, field), getattr(ours, field)
        if found != needed:
            raise QualityError(
                f"{path}: {field} is {found:,}, {needed:,} in {reference.name}; compare what is made of it"
            )


def _check_bos(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Refuse weights whose texts would begin without <bos>: Gemma's predictions mean nothing then."""
    reason = None
    if checkpoint.config.bos_token_id != tokenizer.bos_id:
        reason = f"config.json has bos_token_id {checkpoint.config.bos_token_id}, the tokenizer {tokenizer.bos_id}"
    elif isinstance(checkpoint, GgufCheckpoint):
        if GgufContainer(checkpoint.path).metadata.get(ADD_BOS) is False:
            reason = f"its metadata has {ADD_BOS} = false"
    else:
        settings = _json(checkpoint.path / TOKENIZER_SETTINGS)
        if settings.get("add_bos_token") is False:
            reason = f"{TOKENIZER_SETTINGS} has add_bos_token = false"
    if reason is not None:
        raise QualityError(
            f"{checkpoint.path}: {reason}; Gemma needs <bos> before every text, and figures without it mean nothing: "
            "use the published files"
        )


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(HASH_BYTES):
                digest.update(data)
    except OSError as cause:
        raise QualityError(f"{path}: cannot be read ({cause.strerror}); check the disk") from cause
    return digest.hexdigest()
