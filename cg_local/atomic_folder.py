"""A folder that appears whole or not at all.

This file owns the way from an unfinished sibling folder to the destination: the lock, the removal of what a killed
run left, fsync and the renames. It does not know what the folder holds. Invariant: at the destination there is at any
moment what was there before or the finished new folder; a killed process leaves at most hidden siblings
(`.NAME.partial`, `.NAME.old`, `.NAME.lock`), which the next run on the same destination cleans up or, where it was
asked to, goes on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType

from cg_local.errors import CgLocalError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own. Source: POSIX, sys/stat.h


class AtomicFolder:
    """Context manager: fill `partial`, then call `commit`; leaving without it removes what was written, or keeps it.

    Attributes:
        destination: absolute path that `commit` creates.
        workspace: `.NAME.partial`, a folder for what is needed meanwhile, on the same file system.
        partial: the folder in it that becomes the destination.
        found_work: whether an earlier run's workspace was there and kept when the context was entered, and not cleared.
    """

    destination: Path
    workspace: Path
    partial: Path
    found_work: bool

    def __init__(self, destination: Path, error: type[CgLocalError], *, keeps_work: bool = False) -> None:
        """Prepare; nothing is touched before the context is entered.

        Args:
            destination: where the folder shall appear.
            error: what to raise for everything that a user or the disk can cause.
            keeps_work: leaving without `commit` keeps the workspace, and entering finds what an earlier run left in it.

        Raises:
            error: the destination is the root of a file system.
        """
        self.destination = Path(os.path.abspath(destination))
        name = self.destination.name
        if not name:
            raise error(f"{self.destination}: not the name of a new folder; choose another place")
        self.workspace = self.destination.with_name(f".{name}.partial")
        self.partial = self.workspace / "folder"
        self._old = self.destination.with_name(f".{name}.old")
        self._lock_path = self.destination.with_name(f".{name}.lock")
        self._error = error
        self._keeps_work = keeps_work
        self.found_work = False
        self._lock = -1

    @property
    def work_bytes(self) -> int:
        """Bytes that the workspace takes on the disk."""
        files = (path.stat() for path in self.workspace.rglob("*") if path.is_file())
        # A file may have holes where it is not written yet; Windows does not tell.
        return sum(getattr(status, "st_blocks", status.st_size // BLOCK_BYTES) * BLOCK_BYTES for status in files)

    def __enter__(self) -> AtomicFolder:
        """Take the lock, clean up after a killed run and create what is missing of workspace and `partial`.

        Raises:
            error (of the constructor): another run holds the lock, or the parent folder cannot be written.
        """
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._settle_old()
                if not self._keeps_work:
                    self._remove_work()
                self.found_work = self._is_own_workspace()
                self._make_folders()
            except BaseException:
                self._drop_lock()
                raise
        except OSError as cause:
            raise self._failed(f"cannot be prepared ({cause.strerror})", "choose a writable place") from cause
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._keeps_work:
            shutil.rmtree(self.workspace, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._settle_old()
        self._drop_lock()

    def clear(self) -> None:
        """Empty the workspace: what an earlier run left there is of no use.

        Raises:
            error (of the constructor): the disk fails.
        """
        try:
            self._remove_work()
            self.found_work = False
            self._make_folders()
        except OSError as cause:
            raise self._failed(f"cannot be prepared ({cause.strerror})", "choose a writable place") from cause

    def discard(self) -> None:
        """Let leaving the context remove the workspace, whatever the constructor was told."""
        self._keeps_work = False

    def commit(self, *, replace: bool) -> None:
        """Sync `partial` to the disk and rename it to the destination; the workspace goes when the context is left.

        Args:
            replace: whether a folder at the destination is removed; the caller has judged that it may be.

        Raises:
            error (of the constructor): the destination exists and `replace` is false, or the disk fails.
        """
        try:
            for path in [*self.partial.iterdir(), self.partial]:
                _sync(path)
            if self.destination.exists() and replace:
                os.rename(self.destination, self._old)
            if os.path.lexists(self.destination):
                raise self._failed("exists", "remove it or choose another folder")
            os.rename(self.partial, self.destination)
            self.discard()
            _sync(self.destination.parent)
        except OSError as cause:
            raise self._failed(f"cannot be finished ({cause.strerror})", "check the disk and try again") from cause

    def _settle_old(self) -> None:
        """Remove what was replaced, or move it back when its replacement failed between the two renames."""
        if self._old.exists() and os.path.lexists(self.destination):
            shutil.rmtree(self._old)
        elif self._old.exists():
            os.rename(self._old, self.destination)

    def _remove_work(self) -> None:
        if self._is_own_workspace():
            shutil.rmtree(self.workspace)

    def _make_folders(self) -> None:
        if not self._is_own_workspace():
            self.workspace.mkdir()
        self.partial.mkdir(exist_ok=True)

    def _is_own_workspace(self) -> bool:
        return self.workspace.is_dir() and not self.workspace.is_symlink()

    def _take_lock(self) -> None:
        """Lock the lock file; the operating system releases it when the process ends, however it ends."""
        while self._lock < 0:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                lock_exclusively(descriptor)
            except OSError as cause:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() if os.name != "nt" else ""
                os.close(descriptor)
                who = f"process {holder}" if holder.isdigit() else "another process"
                raise self._failed(f"{who} is writing it now", "wait for it or choose another folder") from cause
            # The file may have been removed by its last holder between our open and our lock.
            if is_same_file(descriptor, self._lock_path):
                self._lock = descriptor
            else:
                os.close(descriptor)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode("ascii"))

    def _drop_lock(self) -> None:
        with contextlib.suppress(OSError):  # Windows removes no open file; an unlocked leftover does no harm
            os.unlink(self._lock_path)
        os.close(self._lock)
        self._lock = -1

    def _failed(self, fault: str, remedy: str) -> CgLocalError:
        return self._error(f"{self.destination}: {fault}; {remedy}")


def lock_exclusively(descriptor: int) -> None:
    """Lock an open file, or fail at once; the system unlocks it when it is closed or its process ends.

    Args:
        descriptor: of a file that is open for writing.

    Raises:
        OSError: another process holds it, or the file system has no locks.
    """
    if sys.platform == "win32":
        # One byte far behind the text, so that others can still read the holder's number.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    """Write a file or folder through to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
