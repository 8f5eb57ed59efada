"""A file that is replaced whole or not at all.

This file owns the way from new content to the file's name. Invariant: under the name there is at any moment the old
content or the new, whatever fails or is killed; a link stays a link. A killed process leaves at most a hidden sibling,
the new content under a name of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import shutil
import stat
from pathlib import Path

from cg_local.errors import CgLocalError, SettingsError, SourceFileError

# What open() takes for a file that nobody else may read meanwhile, and for one that the umask alone restricts.
PRIVATE_MODE, COMMON_MODE = 0o600, 0o666
# Windows would translate line breaks.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def replace_file(
    path: Path, data: bytes, mode: int = COMMON_MODE, *, error: type[CgLocalError] = SettingsError
) -> None:
    """Write a file anew; its mode stays, its owner where that is allowed; folders are made.

    Args:
        path: the file, or a link to it.
        data: the whole new content.
        mode: of a file that is new, before the umask.
        error: what to raise.

    Raises:
        error: the folder or the disk cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise error(f"{path}: is a folder, a device or a pipe; name a file")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_partial(partial, data, PRIVATE_MODE if target.exists() else mode)
            if target.exists():
                with contextlib.suppress(PermissionError):
                    _keep_owner(target, partial)
                _keep_properties(target, partial)
            os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    except OSError as cause:
        is_full = cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        remedy = "make room on the disk" if is_full else "make the folder writable"
        raise error(f"{path}: cannot be written ({cause.strerror}); {remedy}") from cause
    _sync_folder(target.parent)


def replace_known(path: Path, old: bytes, new: bytes, token: str) -> None:
    """Replace a file's content by another one if it is still the one that was read.

    Mode, owner, group, extended attributes (access lists, on Linux) and links to the file stay.

    Args:
        path: the file, or a link to it.
        old: what was read.
        new: what shall stand there.
        token: names the hidden sibling (`partial_path`), which only a killed process leaves behind.

    Raises:
        SourceFileError: the file changed, or it or its folder cannot be written; it is as it was.
    """
    target = check_replaceable(path)
    partial = partial_path(target, token)
    try:
        try:
            _write_partial(partial, new, PRIVATE_MODE)
            try:
                _keep_owner(target, partial)
            except PermissionError:
                raise SourceFileError(
                    f"{path}: you are not in its group, which would be lost; nothing was written, "
                    "apply the output of --diff"
                ) from None
            _keep_properties(target, partial)
            # The slow part is done: the time between this look and the exchange is as short as it can be.
            if target.read_bytes() != old:
                raise SourceFileError(f"{path}: changed since it was read; nothing was written, run the command again")
            os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    except FileNotFoundError as cause:
        raise SourceFileError(f"{path}: removed since it was read, so nothing was written") from cause
    except OSError as cause:
        reason = f"cannot be written ({cause.strerror}), so it is as it was"
        raise SourceFileError(f"{path}: {reason}; {_remedy(cause, target)}") from cause
    _sync_folder(target.parent)


def check_replaceable(path: Path) -> Path:
    """Judge whether `replace_known` may replace a file, without touching it.

    Returns:
        The file itself, where `path` is a link.

    Raises:
        SourceFileError: it is no regular file, read-only, somebody else's, of a strange group, in a folder that cannot
            be written, or has several names (hard links), of which all but one would keep the old content.
    """
    try:
        target = Path(os.path.realpath(path, strict=True))
        status = target.stat()
    except FileNotFoundError:
        raise SourceFileError(f"{path}: no such file; check the path, seen from {Path.cwd()}") from None
    except OSError as cause:
        raise SourceFileError(f"{path}: cannot be found ({cause.strerror}); check the path and its links") from cause
    if not stat.S_ISREG(status.st_mode):
        raise SourceFileError(f"{path}: not a regular file, so it cannot be replaced; leave --write out")
    # Whoever took all write permissions away meant it, even where the superuser may write nevertheless.
    if not status.st_mode & 0o222:
        raise _read_only(path, target, status)
    if status.st_nlink > 1:
        raise SourceFileError(
            f"{path}: has {status.st_nlink} names (hard links), and a write would part them; make it a file of its "
            "own, or apply the output of --diff"
        )
    try:
        with target.open("r+b"):
            pass
    except PermissionError:
        raise _read_only(path, target, status) from None
    except OSError as cause:
        raise SourceFileError(f"{path}: cannot be written ({cause.strerror}); {_remedy(cause, target)}") from cause
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if user not in (0, status.st_uid):
        raise SourceFileError(
            f"{path}: belongs to user {status.st_uid}, and a write would make it yours; run as its owner, or apply the "
            "output of --diff"
        )
    # A new file has its folder's group on some systems and in some folders.
    if user and status.st_gid not in (os.getegid(), *os.getgroups(), target.parent.stat().st_gid):
        raise SourceFileError(
            f"{path}: belongs to group {status.st_gid}, you are not in it and a write would lose it; join it, or apply "
            "the output of --diff"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise SourceFileError(
            f"{path}: the folder {target.parent} cannot be written, and a write makes a new file there; change the "
            "folder's permissions, or apply the output of --diff"
        )
    return target


def partial_path(target: Path, token: str) -> Path:
    """Return the hidden sibling that holds a file's new content until it takes the file's place."""
    # A name may have 255 bytes.
    return target.with_name(f".{target.name[:40]}.{token}.cg-local")


def _write_partial(partial: Path, data: bytes, mode: int) -> None:
    with open(os.open(partial, _CREATE, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _keep_owner(target: Path, partial: Path) -> None:
    """Give the new file the owner and group of the old one."""
    if not hasattr(os, "chown"):
        return
    wanted, found = target.stat(), partial.stat()
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        os.chown(partial, wanted.st_uid, wanted.st_gid)


def _keep_properties(target: Path, partial: Path) -> None:
    """Give the new file mode, flags and extended attributes of the old one, but its own time."""
    shutil.copystat(target, partial)
    os.utime(partial)


def _sync_folder(folder: Path) -> None:
    """Bring the exchange itself through to the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_only(path: Path, target: Path, status: os.stat_result) -> SourceFileError:
    if status.st_mode & 0o222:
        return SourceFileError(
            f"{path}: not yours to write (mode {stat.S_IMODE(status.st_mode):03o}, user {status.st_uid}); run as its "
            "owner, or apply the output of --diff"
        )
    return SourceFileError(
        f"{path}: read-only (mode {stat.S_IMODE(status.st_mode):03o}); make it writable (chmod u+w "
        f"{shlex.quote(str(target))}), or apply the output of --diff"
    )


def _remedy(cause: OSError, target: Path) -> str:
    if cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"make room on the disk of {target.parent}"
    if cause.errno in (errno.EACCES, errno.EPERM):
        return f"make the folder {target.parent} writable: the new content is written beside the file first"
    return "check the disk, or apply the output of --diff elsewhere"
