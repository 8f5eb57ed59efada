"""A found model, opened: its folder and its tokenizer, which fit each other.

This file owns what happens to a damaged copy in the cache. It finds no model and reads no weights. Invariant: a folder
of the user's is never written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cg_local.errors import ConfigError, ModelFolderError, QuantizeError, TokenizerError
from cg_local.model_folder import ModelFolder, open_model_folder
from cg_local.model_store import FoundModel, Progress, ready_folder, renew, temporary_folder
from cg_local.tokenizer import Tokenizer


def open_model(
    found: FoundModel,
    scheme: str | None,
    on_progress: Progress | None,
    on_notice: Callable[[str], None] | None = None,
) -> tuple[ModelFolder, Tokenizer]:
    """Open a model's folder; a damaged copy in the cache is made again, a damaged folder of the user's is an error.

    Args:
        found: the model.
        scheme: how to quantize an embedded model.
        on_progress: as for `model_store.ready_folder`.
        on_notice: told when a temporary copy serves because the cache cannot be written.

    Raises:
        ModelFolderError, ConfigError, TokenizerError: the folder is damaged.
        QuantizeError: neither the cache nor a temporary folder can be written.
    """
    try:
        path = ready_folder(found, scheme, on_progress)
    except QuantizeError as error:
        try:
            path = temporary_folder(found, scheme, on_progress)
        except QuantizeError:
            raise error from None
        if on_notice is not None:
            on_notice(f"{error}; a temporary copy serves this time")
    try:
        return _open_parts(path)
    except (ModelFolderError, ConfigError, TokenizerError):
        if not found.is_embedded:
            raise
        return _open_parts(renew(found, scheme, on_progress))


def _open_parts(path: Path) -> tuple[ModelFolder, Tokenizer]:
    folder = open_model_folder(path)
    tokenizer = Tokenizer.from_file(folder.tokenizer_path)
    tokenizer.check_rows(folder.config.vocab_size, str(folder.path))
    return folder, tokenizer
