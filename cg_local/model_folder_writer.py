"""Writing a model folder as a stream, in bounded memory.

This file owns the order of bytes on their way to the disk: every offset is known before the first weight, parts grow
side by side, what an earlier run wrote is taken over by its digest, and the header comes last. It does not choose
formats or codes, and keeps no record of what is sound. Invariant: model.safetensors has no valid header, and the
destination does not exist, before every byte of every tensor is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
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
READ_BYTES = 1 << 20


class ModelFolderWriter:
    """Context manager that writes one model folder; leaving it without `finish` leaves nothing, or the work so far.

    Use: enter, `append` each tensor's bytes in order (different tensors may grow side by side), then `finish`. With
    `keeps_work`, an interrupted run's bytes are still there: `restore` what is known to be sound, or `clear` all.
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
        keeps_work: bool = False,
        workspace_bytes: int = 0,
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
            keeps_work: leaving without `finish` keeps what was written, for a later run on the same destination.
            workspace_bytes: what the user of `workspace` writes there at most.
        """
        self._folder = AtomicFolder(destination, QuantizeError, keeps_work=keeps_work)
        self._small_files = {CONFIG_FILE: config_bytes, TOKENIZER_FILE: tokenizer_bytes, **notices}
        self._overwrite, self._workspace_bytes = overwrite, workspace_bytes
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

    @property
    def extents(self) -> dict[str, tuple[int, int]]:
        """Offset in model.safetensors and length of every tensor, in bytes."""
        return {name: (self._offsets[name], length) for name, length in self._lengths.items()}

    @property
    def destination(self) -> Path:
        """The folder that `finish` creates."""
        return self._folder.destination

    @property
    def found_work(self) -> bool:
        """Whether an earlier run's work was there when the context was entered, and was not cleared."""
        return self._folder.found_work

    @property
    def workspace(self) -> Path:
        """A folder for files that are needed until `finish`, kept or removed together with the written bytes."""
        return self._folder.workspace

    @property
    def work_bytes(self) -> int:
        """Bytes that the workspace takes on the disk."""
        return self._folder.work_bytes

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
            self._open()
        except BaseException as cause:
            if not self._folder.found_work:
                self.discard()
            self.__exit__(None, None, None)
            if isinstance(cause, OSError):
                raise self._write_error(cause) from cause
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        self._folder.__exit__(kind, value, traceback)

    def clear(self) -> None:
        """Begin anew: what an earlier run left is of no use. To be called before anything is appended.

        Raises:
            QuantizeError: the disk fails.
        """
        self._close()
        self._folder.clear()
        try:
            self._open()
        except OSError as cause:
            raise self._write_error(cause) from cause

    def discard(self) -> None:
        """Let leaving the context remove what was written, whatever the constructor was told."""
        self._folder.discard()

    def restore(self, parts: Mapping[str, tuple[int, str]]) -> bool:
        """Take bytes that an earlier run wrote as appended, if all of them still have their digests.

        Different tensors may be restored in different threads.

        Args:
            parts: tensor -> (bytes behind those already appended or restored, their SHA-256).

        Returns:
            Whether they were taken; if not, nothing changed.
        """
        digests = {}
        for name, (num_bytes, sha256) in parts.items():
            own, digests[name] = hashlib.sha256(), self._digests[name].copy()
            for data in self._stored(name, self._written[name], num_bytes):
                own.update(data)
                digests[name].update(data)
            if own.hexdigest() != sha256:
                return False
        for name, (num_bytes, _) in parts.items():
            self._digests[name] = digests[name]
            self._written[name] += num_bytes
        return True

    def read(self, name: str) -> bytes:
        """Return the bytes of a tensor that is wholly written."""
        assert self._written[name] == self._lengths[name], name
        return b"".join(self._stored(name, 0, self._lengths[name]))

    def sync(self) -> None:
        """Write everything appended so far through to the disk.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as cause:
            raise self._write_error(cause) from cause

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
        os.ftruncate(self._descriptor, max(map(sum, self.extents.values())))
        self.sync()
        self._write_at(0, memoryview(header))
        self._close()
        self._check_destination()  # again: hours may have passed since, and commit removes what it replaces
        self._folder.commit(replace=self._overwrite)

    def _open(self) -> None:
        path = self._folder.partial / WEIGHTS_FILE
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        # A run that was killed while it finished has left a header; the bytes of the tensors are the restorer's.
        self._write_at(0, memoryview(bytes(self._header_length)))
        for name, data in self._small_files.items():
            (self._folder.partial / name).write_bytes(data)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _stored(self, name: str, start: int, num_bytes: int) -> Iterator[bytes]:
        """Bytes of a tensor from the file, piece by piece; fewer where the file is cut or unreadable."""
        try:
            # A handle of its own, as several threads read and the descriptor has one position.
            with (self._folder.partial / WEIGHTS_FILE).open("rb") as file:
                file.seek(self._offsets[name] + start)
                for position in range(0, num_bytes, READ_BYTES):
                    yield file.read(min(READ_BYTES, num_bytes - position))
        except OSError:
            return

    def _write_at(self, offset: int, data: memoryview) -> None:
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as cause:
            raise self._write_error(cause) from cause

    def _check_destination(self) -> None:
        check_destination(self._folder.destination, overwrite=self._overwrite)

    def _check_space(self) -> None:
        # What an interrupted run left is either taken over or cleared.
        needed = self.num_bytes + self._workspace_bytes + DISK_SLACK_BYTES - self.work_bytes
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


def check_destination(path: Path, *, overwrite: bool) -> None:
    """Raise QuantizeError if something is at `path` that may not be replaced, or no folder can be made there.

    Args:
        path: absolute.
        overwrite: a model folder may be replaced.
    """
    parent = next(folder for folder in path.parents or (path,) if os.path.lexists(folder))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise QuantizeError(f"{path}: {parent} is no folder that you may write in; choose another place")
    if not path.name or not os.path.lexists(path):  # the root of a file system is no name, as AtomicFolder says
        return
    if not overwrite:
        raise QuantizeError(f"{path}: exists; choose another folder or pass --overwrite")
    check_replaceable(path)


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
