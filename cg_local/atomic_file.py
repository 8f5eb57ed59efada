"""A file that is replaced whole or not at all.

This file owns the way from new content to the file's name. Invariant: under the name there is at any moment the old
content or the new, whatever fails or is killed; a link stays a link.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cg_local.errors import SettingsError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file anew; its mode stays, folders are made.

    Raises:
        SettingsError: the folder or the disk cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise SettingsError(f"{path}: is a folder, a device or a pipe; name a file")
    own = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        try:
            with own.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                own.chmod(mode)
            os.replace(own, target)
        finally:
            with contextlib.suppress(OSError):
                own.unlink()
    except OSError as cause:
        raise SettingsError(f"{path}: cannot be written ({cause.strerror}); make the folder writable") from cause
