"""Opening published weights, whatever their layout.

This file owns the choice of the reader by what a path is. It reads no weights. Invariant: what no reader takes is
refused with the name of the format that was found.
"""

from __future__ import annotations

from pathlib import Path

from cg_local.checkpoint.foreign_formats import describe_file, needed_instead_of
from cg_local.checkpoint.gguf_checkpoint import GgufCheckpoint
from cg_local.checkpoint.gguf_container import MAGIC
from cg_local.checkpoint.hugging_face import HuggingFaceCheckpoint
from cg_local.checkpoint.published import Checkpoint
from cg_local.errors import CheckpointError


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open published weights.

    Args:
        path: a folder with config.json and model.safetensors, or model.safetensors.index.json and its shards; or a
            GGUF file.

    Raises:
        CheckpointError: no such folder or file, another format (named), a damaged file, tensors that are missing,
            spare, of another shape or type than the config says.
        ConfigError: config.json or a GGUF file's metadata is missing, malformed or describes another network.
    """
    source = Path(path)
    try:
        if not source.exists():
            raise CheckpointError(f"{source}: no such folder or file; {needed_instead_of(source)}")
        if source.is_dir():
            return HuggingFaceCheckpoint(source)
        with source.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        if is_gguf:
            return GgufCheckpoint(source)
        raise CheckpointError(f"{source}: found {describe_file(source)}; {needed_instead_of(source)}")
    except OSError as error:
        raise CheckpointError(f"{source}: {error.strerror}; check the path and its permissions") from error
