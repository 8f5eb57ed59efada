"""What a run leaves for the next one beside its plan (`work_plan`): a journal of the slabs that are on the disk.

This file owns the journal and what it says. It neither writes nor reads weights. Invariant: a line joins the journal
only after the bytes that it tells of are on the disk, and is itself on the disk before `add` returns; what a killed run
left of an unfinished line is cut off, never believed.

A line is eight digits of the CRC-32 of the rest, a space, and a JSON object. The first names the plan by its digest;
the others are the digest of a source file, or a slab: the rows of a tensor, the bytes they take in each part of the
file with their SHA-256, and the figures of their error. A later slab replaces the earlier ones of its tensor whose rows
end behind its first: they turned out to be damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cg_local.errors import QuantizeError
from cg_local.quant.work_plan import WorkPlan

JOURNAL_FILE = "journal"
CHECK_DIGITS = 8


@dataclass(frozen=True)
class Slab:
    """Rows of a tensor that are on the disk.

    Attributes:
        tensor: Hugging Face name.
        start, stop: first row, and the row behind the last.
        parts: name in model.safetensors -> (number of bytes behind those of the slab before, their SHA-256).
        figures: squared error, squared weights, largest absolute error of these rows.
    """

    tensor: str
    start: int
    stop: int
    parts: Mapping[str, tuple[int, str]]
    figures: tuple[float, float, float]

    def document(self) -> dict[str, object]:
        """Return the JSON object of the journal; floats come back from it bit for bit."""
        return {
            "tensor": self.tensor,
            "rows": [self.start, self.stop],
            "parts": {name: list(part) for name, part in self.parts.items()},
            "figures": list(self.figures),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Slab:
        """Undo `document`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        tensor, rows, parts, figures = (document[key] for key in ("tensor", "rows", "parts", "figures"))
        if not (isinstance(tensor, str) and isinstance(rows, list) and isinstance(figures, list)):
            raise TypeError(tensor)
        if not isinstance(parts, dict):
            raise TypeError(parts)
        start, stop = (int(row) for row in rows)
        squared_error, squared_weights, largest = (float(figure) for figure in figures)
        found = {str(name): (int(num_bytes), str(digest)) for name, (num_bytes, digest) in parts.items()}
        return cls(tensor, start, stop, found, (squared_error, squared_weights, largest))


class Journal:
    """The record of one conversion in its workspace. Use: `obstacle`, then enter, then `add`.

    Attributes:
        slabs: by tensor, in the order of the rows and without a gap from row 0; of earlier runs and this one.
        source_digests: SHA-256 of the source files that were wholly read, by name.
        damage: one line about what could not be read of the journal; None: all of it was sound.
        is_read: whether the attributes above say what the journal does; so from the moment the context is entered.
    """

    slabs: dict[str, list[Slab]]
    source_digests: dict[str, str]
    damage: str | None
    is_read: bool

    def __init__(self, workspace: Path, plan: Mapping[str, object]) -> None:
        """Take note of the plan; nothing is touched.

        Args:
            workspace: folder of plan and journal.
            plan: as for `work_plan.WorkPlan`.
        """
        self._plan, self._path = WorkPlan(workspace, plan), workspace / JOURNAL_FILE
        self._descriptor = -1
        self.slabs, self.source_digests, self.damage = {}, {}, None
        self.is_read = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all slabs."""
        slabs = (slab for of_tensor in self.slabs.values() for slab in of_tensor)
        return sum(num_bytes for slab in slabs for num_bytes, _ in slab.parts.values())

    def obstacle(self) -> str | None:
        """Say why the work in the workspace cannot be gone on with; None: it can, or there is none.

        Raises:
            QuantizeError: the disk fails.
        """
        return self._plan.obstacle()

    def __enter__(self) -> Journal:
        """Write the plan where there is none yet, and read the journal.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            self._plan.write()
            self._descriptor = os.open(self._path, flags, 0o644)
            self._read()
            self.is_read = True
        except OSError as cause:
            self.__exit__(None, None, None)
            raise self._failed(cause) from cause
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def add(self, slab: Slab) -> None:
        """Record rows whose bytes are on the disk.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        self._append(slab.document())
        self._take(slab)

    def add_source(self, name: str, sha256: str) -> None:
        """Record the digest of a source file.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        self._append({"source": name, "sha256": sha256})
        self.source_digests[name] = sha256

    def _read(self) -> None:
        """Take every line up to the first that is not sound, and cut the file there."""
        # A killed run leaves the beginning of one line at most: what stands behind the last end of a line.
        *lines, _ = self._path.read_bytes().split(b"\n")
        plan_digest, end = {"plan": hashlib.sha256(self._plan.data).hexdigest()}, 0
        for number, line in enumerate(lines):
            document = _parsed(line)
            is_sound = document == plan_digest if number == 0 else document is not None and self._understand(document)
            if not is_sound:
                self.damage = f"{self._path}: damaged from line {number + 1} on; what these lines told is redone"
                break
            end += len(line) + 1
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)
        if end == 0:
            self._append(plan_digest)

    def _understand(self, document: Mapping[str, object]) -> bool:
        try:
            if "source" in document:
                self.source_digests[str(document["source"])] = str(document["sha256"])
            else:
                self._take(Slab.from_document(document))
        except (LookupError, TypeError, ValueError):
            return False
        return True

    def _take(self, slab: Slab) -> None:
        slabs = self.slabs.setdefault(slab.tensor, [])
        while slabs and slabs[-1].stop > slab.start:
            slabs.pop()
        if slab.start == (slabs[-1].stop if slabs else 0):
            slabs.append(slab)

    def _append(self, document: Mapping[str, object]) -> None:
        text = json.dumps(document, separators=(",", ":")).encode("ascii")
        line = memoryview(b"%08x %s\n" % (zlib.crc32(text), text))
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except OSError as cause:
            raise self._failed(cause) from cause

    def _failed(self, cause: OSError) -> QuantizeError:
        return QuantizeError(f"{self._path}: cannot be written ({cause.strerror}); make room or check the disk")


def _parsed(line: bytes) -> dict[str, object] | None:
    """The object of a line; None where the line is not as it was written."""
    text = line[CHECK_DIGITS + 1 :]
    if line[: CHECK_DIGITS + 1] != b"%08x " % zlib.crc32(text):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
