"""Writing a model folder as a stream, in bounded memory.

This file owns the order of bytes on their way to the disk: every offset is known before the first weight, parts grow
side by side, and the header comes last. It does not choose formats or codes. Invariant: model.safetensors has no valid
header, and the destination does not exist, before every byte of every tensor is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from cg_local.atomic_folder import AtomicFolder
from cg_local.config import ModelConfig
from cg_local.errors import ModelFolderError, QuantizeError
from cg_local.model_folder import (
    CONFIG_FILE,
    FORMAT_VERSION,
    METADATA_KEY,
    NORM_CONVENTION,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    file_layout,
)
from cg_local.packing import Array
from cg_local.safetensors_file import DTYPE_BITS, SafetensorsFile, header_bytes, shown

NOTICE_FILES = ("NOTICE", "LICENSE")
OWN_FILES = frozenset({CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, *NOTICE_FILES})
DISK_SLACK_BYTES = 16 << 20  # folder entries, copies of small files


class ModelFolderWriter:
    """Context manager that writes one model folder; leaving it without `finish` leaves nothing behind.

    Use: enter, `append` each tensor's bytes in order (different tensors may grow side by side), then `finish`.
    """

    def __init__(
        self,
        destination: Path,
        *,
        config: ModelConfig,
        config_bytes: bytes,
        tokenizer_bytes: bytes,
        notices: Mapping[str, bytes],
        scheme: str,
        formats: Mapping[str, str],
        draft: Mapping[str, object],
        overwrite: bool = False,
    ) -> None:
        """Lay out the file.

        Args:
            destination: folder to create.
            config: of the model, parsed from config_bytes.
            config_bytes: the published config.json, copied unchanged.
            tokenizer_bytes: tokenizer.model, copied unchanged.
            notices: further small files by name, of NOTICE_FILES.
            scheme: name of the choice of formats.
            formats: format of each matrix, HEAD among them when it is separate.
            draft: stands for the details that `finish` will get, and is at least as long as JSON: it fixes the length
                of the header and so every offset.
            overwrite: replace a model folder at the destination.
        """
        self._folder = AtomicFolder(destination, QuantizeError)
        self._small_files = {CONFIG_FILE: config_bytes, TOKENIZER_FILE: tokenizer_bytes, **notices}
        self._overwrite = overwrite
        self._layout = file_layout(config, formats)
        self._digests = {name: hashlib.sha256() for name, _, _ in self._layout}
        self._lengths = {name: math.prod(shape) * DTYPE_BITS[dtype] // 8 for name, dtype, shape in self._layout}
        self._written = dict.fromkeys(self._lengths, 0)
        self._document: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "scheme": scheme,
            "norm_convention": NORM_CONVENTION,
            "config_sha256": hashlib.sha256(config_bytes).hexdigest(),
            "tokenizer_sha256": hashlib.sha256(tokenizer_bytes).hexdigest(),
            "formats": dict(formats),
        }
        zeros = dict.fromkeys(self._digests, "0" * 64)
        text = json.dumps({**self._document, **draft, "sha256": zeros}, separators=(",", ":"))
        header, self._offsets = header_bytes(self._layout, {METADATA_KEY: text})
        self._header_length = len(header)
        self._descriptor = -1

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self._lengths.values())

    def __enter__(self) -> ModelFolderWriter:
        """Take the destination's lock, judge what is there and look at the free space.

        Raises:
            QuantizeError: the destination exists and may not be replaced, is being written by another process, cannot
                be written, or the disk is too full.
        """
        self._folder.__enter__()
        try:
            # After entering, which puts back a folder that a killed run had set aside.
            self._check_destination()
            self._check_space()
            path = self._folder.partial / WEIGHTS_FILE
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
            for name, data in self._small_files.items():
                (self._folder.partial / name).write_bytes(data)
        except OSError as cause:
            self.__exit__(None, None, None)
            raise self._write_error(cause) from cause
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._folder.__exit__(kind, value, traceback)

    def append(self, name: str, part: Array) -> None:
        """Write the next bytes of a tensor.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        assert self._written[name] + data.nbytes <= self._lengths[name], name
        self._digests[name].update(data.data)
        self._write_at(self._offsets[name] + self._written[name], data.data)
        self._written[name] += data.nbytes

    def finish(self, details: Mapping[str, object]) -> None:
        """Write the header and move the folder to the destination.

        Args:
            details: further members of the metadata document, JSON values.

        Raises:
            QuantizeError: the disk is full or fails, or the destination appeared or was changed meanwhile.
        """
        for name, length in self._lengths.items():
            if name.endswith(".padding"):
                self.append(name, np.zeros(length, np.uint8))
            assert self._written[name] == length, (name, self._written[name], length)
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        document = {**self._document, **details, "sha256": digests}
        text = json.dumps(document, separators=(",", ":"))
        header, _ = header_bytes(self._layout, {METADATA_KEY: text})
        assert len(header) <= self._header_length, "more metadata than reserved"
        # Spaces at the end of the JSON header are part of the format; they fill the rest of what was reserved.
        header = (self._header_length - 8).to_bytes(8, "little") + header[8:].ljust(self._header_length - 8)
        try:
            os.fsync(self._descriptor)
        except OSError as cause:
            raise self._write_error(cause) from cause
        self._write_at(0, memoryview(header))
        os.close(self._descriptor)
        self._descriptor = -1
        self._check_destination()  # again: hours may have passed since, and commit removes what it replaces
        self._folder.commit(replace=self._overwrite)

    def _write_at(self, offset: int, data: memoryview) -> None:
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as cause:
            raise self._write_error(cause) from cause

    def _check_destination(self) -> None:
        path = self._folder.destination
        if not os.path.lexists(path):
            return
        if not self._overwrite:
            raise QuantizeError(f"{path}: exists; choose another folder or pass --overwrite")
        check_replaceable(path)

    def _check_space(self) -> None:
        needed = self.num_bytes + DISK_SLACK_BYTES
        free = shutil.disk_usage(self._folder.partial).free
        if free < needed:
            raise QuantizeError(
                f"{self._folder.destination.parent}: {free:,} bytes free, {needed:,} needed; "
                "make room or choose another disk"
            )

    def _write_error(self, cause: OSError) -> QuantizeError:
        where = self._folder.destination
        if cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            return QuantizeError(f"{where}: no space left on the disk, {self.num_bytes:,} bytes needed; make room")
        return QuantizeError(f"{where}: cannot be written ({cause.strerror}); check the disk")


def check_replaceable(path: Path) -> None:
    """Raise QuantizeError unless `path` is a model folder, of any version, that holds nothing but its own files."""
    if path.is_symlink() or not path.is_dir():
        raise QuantizeError(f"{path}: not a folder, so it is not overwritten; choose another name")
    foreign = sorted({entry.name for entry in path.iterdir()} - OWN_FILES)
    if foreign:
        raise QuantizeError(f"{path}: holds {shown(foreign[0])}, which is not cg-local's; remove the folder yourself")
    try:
        metadata = SafetensorsFile(path / WEIGHTS_FILE, ModelFolderError).metadata
    except ModelFolderError as cause:
        raise QuantizeError(f"{path}: not a sound model folder, so it stays; remove it yourself") from cause
    if METADATA_KEY not in metadata:
        raise QuantizeError(f"{path}: holds weights that cg-local did not write; choose another folder")
