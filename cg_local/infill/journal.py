"""What was written into the user's files, so that it can be taken back.

This file owns the journal: one small file for each file that a write changed, with the text before and after and some
of what stands around it, in a folder that only the user can read. Invariants: an entry is on the disk before its file
changes, and goes when the file is taken back; one process at a time writes or takes back; of the newest writes as many
are kept, whole, as MAX_ENTRIES and MAX_BYTES hold (the newest always).

A process may be killed anywhere. An entry whose file is still as before, or is so again, is found to be done with when
its turn comes, and what its write left beside the file is removed by the next process that takes the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cg_local.atomic_file import PRIVATE_MODE, partial_path, replace_file, replace_known
from cg_local.atomic_folder import lock_exclusively
from cg_local.errors import SettingsError, SourceFileError
from cg_local.infill.anchors import Distances, Surroundings, distances, inverse_edits, surroundings_of
from cg_local.infill.edit import Edit, apply_edits

MAX_ENTRIES = 200
MAX_BYTES = 16 * 1024 * 1024

_FORMAT = 1
_LOCK_SECONDS, _POLL_SECONDS = 10.0, 0.02


@dataclass(frozen=True)
class FileEdits:
    """What is to be changed in one file.

    Attributes:
        path: the file, or a link to it.
        data: what was read from it.
        edits: the changes, in any order.
    """

    path: Path
    data: bytes
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Write:
    """What one write changed in one file.

    Attributes:
        number: grows from entry to entry.
        group: the same for all files of one write.
        file: the file itself, absolute, links resolved.
        time: when it was written, seconds since 1970.
        token: names the hidden sibling that a killed process leaves.
        old_digest, new_digest: SHA-256 of the whole file before and after.
        edits: what was changed, offsets of the file before, ascending.
        surroundings: of each edit.
        distances: how much of them tells the edits from the rest of the file.
    """

    number: int
    group: str
    file: Path
    time: float
    token: str
    old_digest: str
    new_digest: str
    edits: tuple[Edit, ...]
    surroundings: tuple[Surroundings, ...]
    distances: Distances

    @property
    def clock(self) -> str:
        """When it was written, for a person."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))


@dataclass(frozen=True)
class Undo:
    """What became of one file of a write that was to be taken back.

    Attributes:
        write: the write.
        data: the file as it stands now; None when the write was refused.
        edits: what taking back changes in it; empty when the file was as before the write already.
        error: why it was refused.
    """

    write: Write
    data: bytes | None = None
    edits: tuple[Edit, ...] = ()
    error: SourceFileError | None = None


class Journal:
    """The writes of one user, kept in one folder."""

    def __init__(self, folder: Path) -> None:
        """Bind to a folder; it is made when something is written."""
        self.folder = folder

    def write(self, path: Path, data: bytes, edits: Sequence[Edit]) -> None:
        """Change one file, and remember how it was; see `write_together`.

        Raises:
            SourceFileError: the file changed or cannot be written, or the journal cannot; the file is as it was.
        """
        (error,) = self.write_together([FileEdits(path, data, tuple(edits))])
        if error is not None:
            raise error

    def write_together(self, files: Sequence[FileEdits]) -> list[SourceFileError | None]:
        """Change files as one write, and remember how they were.

        Args:
            files: each file once; one that holds something else by now than what was read is refused.

        Returns:
            For each file why it was not written, and is as it was.

        Raises:
            SourceFileError: the journal cannot be locked; all files are as they were.
        """
        group = secrets.token_hex(8)
        with self._locked():
            errors = [self._write(file, group) for file in files]
            with contextlib.suppress(OSError, SourceFileError):
                self._drop_oldest()
        return errors

    def _write(self, file: FileEdits, group: str) -> SourceFileError | None:
        new = apply_edits(file.data, file.edits)
        try:
            number = max(self._numbers(), default=0) + 1
            write = _described(number, group, file, new)
            with self._explained():
                replace_file(self._entry(number), _encoded(write), PRIVATE_MODE)
            try:
                replace_known(file.path, file.data, new, write.token)
            except SourceFileError:  # nothing else says for sure that the file is as it was
                with contextlib.suppress(OSError):
                    self._entry(number).unlink()
                raise
        except SourceFileError as error:
            return error
        return None

    def undo(
        self,
        count: int,
        files: Sequence[Path] = (),
        *,
        folder: Path | None = None,
        is_dry: bool = False,
        is_forgotten: bool = False,
    ) -> list[Undo]:
        """Take the last writes back, the newest first; each file is judged by itself.

        Args:
            count: how many at most; a write that changed several files counts once.
            files: only what was written into these files, or into every file where none is named.
            folder: where no file is named: only writes of which a file lies in or below this folder.
            is_dry: say what would be done, and do nothing.
            is_forgotten: strike the writes from the journal, and leave the files as they are.

        Raises:
            SourceFileError: the journal cannot be read, or is empty.
        """
        wanted = {Path(os.path.realpath(file)) for file in files}
        with self._locked():
            known = list(self._writes())
            writes = [write for write in known if not wanted or write.file in wanted]
            if folder is not None and not wanted:
                here = {write.group for write in known if write.file.is_relative_to(folder)}
                writes = [write for write in known if write.group in here]
            groups = list(dict.fromkeys(write.group for write in writes))[:count]
            if not writes:
                where = f" in {', '.join(map(str, files))}" if files else f" below {folder}" if folder and known else ""
                elsewhere = f"; the last one elsewhere: {_last(known)}" if known and not files else ""
                raise SourceFileError(
                    f"nothing to take back: no write{where} is in the journal, {self.folder}{elsewhere}"
                )
            if is_forgotten:
                return [self._forget(write) for write in writes if write.group in groups]
            return [self._take_back(write, is_dry=is_dry) for write in writes if write.group in groups]

    def _take_back(self, write: Write, *, is_dry: bool) -> Undo:
        try:
            data = _read(write)
            edits = _inverse(write, data)
            if edits and not is_dry:
                replace_known(write.file, data, apply_edits(data, edits), write.token)
        except SourceFileError as error:
            return Undo(write, error=error)
        if not is_dry:
            self._forget(write)
        return Undo(write, data, edits)

    def _forget(self, write: Write) -> Undo:
        with self._explained():
            self._entry(write.number).unlink(missing_ok=True)
        return Undo(write)

    def _writes(self) -> Iterator[Write]:
        """Give the writes, newest first; an entry that a newer cg-local or a failing disk left is passed over."""
        for number in sorted(self._numbers(), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield _decoded(number, self._entry(number).read_bytes())

    def _numbers(self) -> list[int]:
        with self._explained():
            names = os.listdir(self.folder)
        return [int(name[: -len(".json")]) for name in names if name.endswith(".json") and name[:-5].isdecimal()]

    def _entry(self, number: int) -> Path:
        return self.folder / f"{number:012d}.json"

    def _drop_oldest(self) -> None:
        groups: dict[str, list[int]] = {}
        known = {write.number: write.group for write in self._writes()}
        for number in sorted(self._numbers(), reverse=True):
            groups.setdefault(known.get(number, str(number)), []).append(number)
        num_entries = num_bytes = 0
        for rank, numbers in enumerate(groups.values()):
            num_entries += len(numbers)
            num_bytes += sum(self._entry(number).stat().st_size for number in numbers)
            if rank > 0 and (num_entries > MAX_ENTRIES or num_bytes > MAX_BYTES):
                for number in numbers:
                    self._entry(number).unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out, and remove what killed ones left."""
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, PRIVATE_MODE)
        try:
            self._wait_for(descriptor)
            self._clean()
            yield
        finally:
            os.close(descriptor)

    def _wait_for(self, descriptor: int) -> None:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return lock_exclusively(descriptor)
            except OSError as cause:
                if time.monotonic() > deadline:
                    raise SourceFileError(
                        f"{self.folder}: the journal of writes cannot be locked ({cause.strerror}); wait for the other "
                        "cg-local, or set CG_LOCAL_STATE to a folder on a local disk"
                    ) from cause
            time.sleep(_POLL_SECONDS)

    def _clean(self) -> None:
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                if name.startswith("."):  # an entry that was never finished
                    self.folder.joinpath(name).unlink()
        for write in self._writes():
            with contextlib.suppress(OSError):
                partial_path(write.file, write.token).unlink()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SettingsError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else getattr(cause.__cause__, "strerror", cause)
            raise SourceFileError(
                f"{self.folder}: the journal of writes, which --undo needs, cannot be kept ({reason}); "
                "make room there, or set CG_LOCAL_STATE to a folder that can be written"
            ) from cause


def _last(writes: Sequence[Write]) -> str:
    """Tell of the newest write, and how it is taken back from anywhere."""
    files = [str(write.file) for write in writes if write.group == writes[0].group]
    return f"{', '.join(files)} at {writes[0].clock}, which `cg-local fill --undo {shlex.join(files)}` takes back"


def _described(number: int, group: str, file: FileEdits, new: bytes) -> Write:
    data, edits = file.data, sorted(file.edits, key=lambda edit: (edit.start, edit.end))
    surroundings = surroundings_of(data, edits)
    return Write(
        number=number,
        group=group,
        file=Path(os.path.realpath(file.path)),
        time=time.time(),
        token=secrets.token_hex(8),
        old_digest=_digest(data),
        new_digest=_digest(new),
        edits=tuple(edits),
        surroundings=tuple(surroundings),
        distances=distances(data, edits, surroundings),
    )


def _named(write: Write) -> str:
    return f" {shlex.quote(str(write.file))}"


def _read(write: Write) -> bytes:
    try:
        return write.file.read_bytes()
    except OSError as cause:
        raise SourceFileError(
            f"{write.file}: cannot be read ({cause.strerror}), so the write of {write.clock} stays in the journal; "
            f"bring the file back, or strike the write from it: `cg-local fill --undo --forget{_named(write)}`"
        ) from cause


def _inverse(write: Write, data: bytes) -> tuple[Edit, ...]:
    """Return the edits that bring the text before a write back; empty when it is there already.

    Raises:
        SourceFileError: what was written does not stand there any more, or in more than one place.
    """
    digest = _digest(data)
    if digest == write.old_digest:
        return ()
    if digest == write.new_digest:
        shift, inverse = 0, []
        for edit in write.edits:
            inverse.append(Edit(edit.start + shift, edit.after, edit.before))
            shift += len(edit.after) - len(edit.before)
        return tuple(inverse)
    found = inverse_edits(data, write.edits, write.surroundings, write.distances)
    if found is not None:
        return found
    raise SourceFileError(
        f"{write.file}: what was written at {write.clock} does not stand there any more, so nothing was taken back; "
        f"see it with `cg-local fill --undo --diff{_named(write)}`, change the file by hand, and strike the write from "
        f"the journal: `cg-local fill --undo --forget{_named(write)}`"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encoded(write: Write) -> bytes:
    edits = [
        [edit.start, *map(_text, (edit.before, edit.after, around.left, around.right))]
        for edit, around in zip(write.edits, write.surroundings, strict=True)
    ]
    document = {
        "format": _FORMAT,
        "group": write.group,
        "file": str(write.file),
        "time": write.time,
        "token": write.token,
        "old_digest": write.old_digest,
        "new_digest": write.new_digest,
        "edits": edits,
        "distances": [write.distances.written, write.distances.removed],
    }
    return json.dumps(document).encode("ascii")


def _decoded(number: int, data: bytes) -> Write:
    document = json.loads(data)
    if document.pop("format") != _FORMAT:
        raise ValueError("another format")
    rows = [(row[0], *(text.encode("utf-8", "surrogateescape") for text in row[1:])) for row in document.pop("edits")]
    edits = tuple(Edit(start, before, after) for start, before, after, _, _ in rows)
    surroundings = tuple(Surroundings(left, right) for _, _, _, left, right in rows)
    document["file"] = Path(document["file"])
    document["distances"] = Distances(*document.get("distances", ()))  # none: of versions that did not look
    document.setdefault("group", document["token"])  # as versions wrote it that knew one file a write
    return Write(number=number, edits=edits, surroundings=surroundings, **document)


def _text(data: bytes) -> str:
    # Surroundings may begin or end within a character.
    return data.decode("utf-8", "surrogateescape")
