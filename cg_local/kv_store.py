"""Pages of K and V on disk, found again by the tokens that they belong to.

This file owns the files: their names, their layout, what they may take of the disk, and which go first. It knows no
engine and no array; a page is a run of bytes to it. Invariant: a page is only handed out if it was written for the same
model, the same layout and the same tokens from the first one on (compared whole, not by a hash), and its checksum is
right. Everything else, damage and a full disk included, is a page that is not there: nothing raises and nothing is said
but to the log, because the tokens can always be computed again.

A *segment* is a file with pages of consecutive positions, written at once: all that was new at the end of a turn. Its
name is a digest of all tokens up to the end of its first page, so the segment that goes on behind a known page is found
by its name alone, and texts that begin alike share segments up to where they part.

Any number of processes may read and write: a segment appears whole, by a rename, and a file that another process
removed while it is open stays readable, or (Windows) cannot be removed yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import re
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAX_BYTES = 4 << 30
MAX_DISK_SHARE = 1 / 10
"""Of what would be free without the store, so much may be taken."""
ABANDONED_SECONDS = 3600.0
"""A file that is still unfinished after this time belongs to a killed process."""

_MAGIC = b"CGLKV\x01\r\n"
# Magic, model, page_size, page_bytes, first page, pages, payload's offset; behind it tokens, checksums of the pages,
# and the checksum of all that.
_HEADER = struct.Struct("<8s32sIQIIQ")
_SUFFIX, _UNFINISHED, _LABEL = ".kv", ".tmp", "label"
_KIND = re.compile("[0-9a-f]{32}")

CONVERSATIONS, FILLS = "conversations", "fills"
"""What pages are kept for; they lie apart, so that a person sees and clears the one or the other."""

ReadPage = Callable[[int, memoryview], None]
ShouldStop = Callable[[], bool]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageKind:
    """What pages must have in common to be exchangeable.

    Attributes:
        digest: 32 bytes that stand for the model and for everything else that decides on the pages' bits.
        label: the model's name for people.
        page_size: tokens of a page; page_bytes: its K and V in all layers.
        use: CONVERSATIONS or FILLS; the digest stands for it too.
    """

    digest: bytes
    label: str
    page_size: int
    page_bytes: int
    use: str = CONVERSATIONS


@dataclass(frozen=True)
class StoredPages:
    """Pages that lie in one segment.

    Attributes:
        path: of the segment.
        first_page: position of the first one in its sequence, counted in pages.
        num_pages: how many of them fit the tokens that were asked for.
        offset: of the first one in the file; checksums: of each.
    """

    path: Path
    first_page: int
    num_pages: int
    offset: int
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class StoreEntry:
    """What the store holds of one kind of pages.

    Attributes:
        label: the model's name.
        folder: where it lies.
        num_segments, num_bytes: files and their size.
        used_at: seconds since 1970, when a segment was last read or written.
        use: CONVERSATIONS or FILLS.
    """

    label: str
    folder: Path
    num_segments: int
    num_bytes: int
    used_at: float
    use: str


class KVStore:
    """Pages on disk.

    Args:
        folder: created with mode 0700 when something is written.
        max_bytes: what all segments together may take; 0 neither reads nor writes. Never more than a tenth of what is
            free on the disk, the store's own counted with it.
    """

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def find(self, kind: PageKind, token_ids: Sequence[int]) -> list[StoredPages]:
        """Return the stored pages of the longest prefix of these tokens, in order and without a gap.

        Only what the headers say is compared; `read` checks the pages.
        """
        found: list[StoredPages] = []
        num_pages = len(token_ids) // kind.page_size if self.max_bytes else 0
        packed = _packed(token_ids)
        place = 0
        while place < num_pages:
            pages = _look_up(self._path(kind, packed, place), kind, packed, place)
            if pages is None:
                break
            found.append(pages)
            place += pages.num_pages
        self._touch([pages.path for pages in found])
        return found

    def read(self, pages: StoredPages, kind: PageKind, first_page: int) -> Iterator[memoryview]:
        """Yield the pages from a position on, one after the other in the same buffer, as far as they are sound.

        Args:
            pages: from `find`.
            kind: as given to `find`.
            first_page: at least pages.first_page.
        """
        buffer = memoryview(bytearray(kind.page_bytes))
        try:
            with pages.path.open("rb", buffering=0) as file:
                skipped = first_page - pages.first_page
                file.seek(pages.offset + skipped * kind.page_bytes)
                for checksum in pages.checksums[skipped:]:
                    if file.readinto(buffer) != kind.page_bytes or zlib.crc32(buffer) != checksum:
                        _discard(pages.path, "a page is damaged")
                        return
                    yield buffer
        except OSError as error:
            _log.debug("%s: %s", pages.path, error)

    def write(
        self, kind: PageKind, token_ids: Sequence[int], read_page: ReadPage, *, should_stop: ShouldStop = lambda: False
    ) -> int:
        """Store the full pages of these tokens that are not stored yet, then make room for them.

        Args:
            kind: of the pages.
            token_ids: from the start of the sequence.
            read_page: called with a page's position and the buffer to fill.
            should_stop: asked before each page; what is written until then is kept.

        Returns:
            Bytes written.
        """
        found = self.find(kind, token_ids)
        first = sum(pages.num_pages for pages in found)
        num_pages = len(token_ids) // kind.page_size - first
        try:
            # The pages before these must stay, or these could not be found.
            room = self._limit() - sum(pages.path.stat().st_size for pages in found)
            num_pages = min(num_pages, (room - _offset(kind, first, 0)) // (kind.page_bytes + 4 * kind.page_size + 4))
            if num_pages <= 0:
                return 0
            _make_folder(self._kind_folder(kind), f"{kind.label}\n{kind.use}")
            written = self._write_segment(kind, _packed(token_ids), (first, num_pages), read_page, should_stop)
            self._touch([*(pages.path for pages in found), self._path(kind, _packed(token_ids), first)])
            self.shrink()
        except OSError as error:
            _log.debug("%s: not written: %s", self.folder, error)
            return 0
        return written

    def entries(self) -> list[StoreEntry]:
        """Return what is stored, by kind of pages, the one used last first."""
        entries = []
        for folder in _subfolders(self.folder):
            files = _segments(folder)
            label, use = _label_and_use(folder)
            used_at = max((status.st_mtime for _, status in files), default=0.0)
            entries.append(StoreEntry(label, folder, len(files), sum(s.st_size for _, s in files), used_at, use))
        return sorted(entries, key=lambda entry: -entry.used_at)

    def clear(self, use: str | None = None) -> int:
        """Remove what stores wrote for one use, or for all, and nothing else; return the bytes that were freed."""
        freed = 0
        for folder in _subfolders(self.folder):
            if use is not None and _label_and_use(folder)[1] != use:
                continue
            for path, status in _segments(folder):
                freed += status.st_size if _remove(path) else 0
            for path in (*folder.glob(f"*{_UNFINISHED}"), folder / _LABEL):
                _remove(path)
            with contextlib.suppress(OSError):  # something of somebody else's is in it
                folder.rmdir()
        return freed

    def shrink(self) -> None:
        """Remove the segments used longest ago until the rest keeps its bound, and what killed processes left."""
        files = [file for folder in _subfolders(self.folder) for file in _segments(folder)]
        now = time.time()
        for folder in _subfolders(self.folder):
            for path in folder.glob(f"*{_UNFINISHED}"):
                with contextlib.suppress(OSError):
                    if now - path.stat().st_mtime > ABANDONED_SECONDS:
                        path.unlink()
        excess = sum(status.st_size for _, status in files) - self._limit()
        for path, status in sorted(files, key=lambda file: file[1].st_mtime):
            if excess <= 0:
                break
            excess -= status.st_size if _remove(path) else 0

    def _limit(self) -> int:
        """Bytes that all segments may take."""
        own = sum(status.st_size for folder in _subfolders(self.folder) for _, status in _segments(folder))
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return min(self.max_bytes, int((shutil.disk_usage(place).free + own) * MAX_DISK_SHARE))

    def _kind_folder(self, kind: PageKind) -> Path:
        return self.folder / kind.digest.hex()[:32]

    def _path(self, kind: PageKind, packed: bytes, place: int) -> Path:
        """Where the segment lies that begins with the page at `place`."""
        tokens = packed[: 4 * kind.page_size * (place + 1)]
        return self._kind_folder(kind) / f"{hashlib.sha256(tokens).hexdigest()[:32]}{_SUFFIX}"

    def _write_segment(
        self, kind: PageKind, packed: bytes, place: tuple[int, int], read_page: ReadPage, should_stop: ShouldStop
    ) -> int:
        first, num_pages = place
        path = self._path(kind, packed, first)
        own = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        offset = _offset(kind, first, num_pages)  # if fewer pages come, the header's end stays empty
        buffer = memoryview(bytearray(kind.page_bytes))
        checksums: list[int] = []
        try:
            with open(
                os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb"
            ) as file:
                file.seek(offset)
                for number in range(num_pages):
                    if should_stop():
                        break
                    read_page(first + number, buffer)
                    checksums.append(zlib.crc32(buffer))
                    file.write(buffer)
                file.seek(0)
                file.write(_header(kind, packed, first, offset, checksums))
            if not checksums:
                return 0
            os.replace(own, path)
        finally:
            with contextlib.suppress(OSError):
                own.unlink()
        return offset + len(checksums) * kind.page_bytes

    def _touch(self, paths: Sequence[Path]) -> None:
        """Count segments as used now; one that stands on others counts as older than those, and goes before them."""
        now = time.time()
        for depth, path in enumerate(paths):
            with contextlib.suppress(OSError):
                os.utime(path, (now, now - 0.001 * depth))


def _packed(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _offset(kind: PageKind, first: int, num_pages: int) -> int:
    """Return where the pages of a segment begin: behind the header, the tokens up to its end, and the checksums."""
    return _HEADER.size + 4 * kind.page_size * (first + num_pages) + 4 * num_pages + 4


def _header(kind: PageKind, packed: bytes, first: int, offset: int, checksums: list[int]) -> bytes:
    num_pages = len(checksums)
    head = _HEADER.pack(_MAGIC, kind.digest, kind.page_size, kind.page_bytes, first, num_pages, offset)
    head += packed[: 4 * kind.page_size * (first + num_pages)] + _packed(checksums)
    return head + _packed([zlib.crc32(head)])


def _look_up(path: Path, kind: PageKind, packed: bytes, place: int) -> StoredPages | None:
    """Return the pages of a segment that fit; None without one, or when the first does not fit."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                _discard(path, "cut in its header")
                return None
            magic, digest, page_size, page_bytes, first, num_pages, offset = _HEADER.unpack(head)
            expected = _MAGIC, kind.digest, kind.page_size, kind.page_bytes, place
            if (magic, digest, page_size, page_bytes, first) != expected:
                _discard(path, "of another kind")
                return None
            size = os.fstat(file.fileno()).st_size
            token_bytes = 4 * page_size * (first + num_pages)
            if size != offset + num_pages * page_bytes or _HEADER.size + token_bytes + 4 * num_pages + 4 > offset:
                _discard(path, "cut")
                return None
            rest = file.read(token_bytes + 4 * num_pages + 4)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _log.debug("%s: %s", path, error)
        return None
    *checksums, own = struct.unpack(f"<{num_pages + 1}I", rest[token_bytes:])
    if zlib.crc32(rest[:-4], zlib.crc32(head)) != own:
        _discard(path, "its header is damaged")
        return None
    fitting = _num_same_pages(rest, packed, 4 * page_size, first + num_pages) - first
    if fitting <= 0:
        return None
    return StoredPages(path, first, fitting, offset, tuple(checksums[:fitting]))


def _num_same_pages(stored: bytes, wanted: bytes, page: int, num_pages: int) -> int:
    """Return how many pages of tokens from the start are the same; `page` is the bytes of the tokens of one."""
    same = itertools.takewhile(
        lambda number: stored[page * number : page * (number + 1)] == wanted[page * number : page * (number + 1)],
        range(num_pages),
    )
    return sum(1 for _ in same)


def _discard(path: Path, why: str) -> None:
    _log.debug("%s: %s; removed", path, why)
    _remove(path)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError as error:
        _log.debug("%s: %s", path, error)
        return False
    return True


def _make_folder(folder: Path, label: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # The tokens of conversations and source files stand in the files.
    for each in (folder.parent, folder):
        os.chmod(each, 0o700)
    if not folder.joinpath(_LABEL).exists():
        folder.joinpath(_LABEL).write_text(f"{label}\n", encoding="utf-8")


def _label_and_use(folder: Path) -> tuple[str, str]:
    """Read what a folder's pages are, as `_make_folder` wrote it; folders of one line are of conversations."""
    try:
        lines = folder.joinpath(_LABEL).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    label, use, *_ = [*lines, "?", CONVERSATIONS] if len(lines) != 1 else [*lines, CONVERSATIONS]
    return label, use


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders that stores made; the place is the user's choice, and may hold others."""
    try:
        return [path for path in folder.iterdir() if _KIND.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []


def _segments(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the finished segments of a folder with their status."""
    found = []
    try:
        with os.scandir(folder) as places:
            for place in places:
                if place.name.endswith(_SUFFIX):
                    with contextlib.suppress(OSError):
                        found.append((Path(place.path), os.stat(place.path)))
    except OSError as error:
        _log.debug("%s: %s", folder, error)
    return found
