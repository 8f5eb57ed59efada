"""Where compiled code is kept between processes.

This file owns the choice of the folder. Numba looks at a jitted function's own file only and would serve stale code
when a file it calls into changes, so the folder's name holds a digest of all sources. Invariant: the folder can be
written, or it is a temporary one: a process never fails because it cannot keep what it compiled.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba


def cache_folder(package: Path, *further: Path) -> Path:
    """Choose the folder for the compiled code of a package's modules.

    The first that can be written of: NUMBA_CACHE_DIR, the package's own __pycache__, CG_LOCAL_CACHE, ~/.cache/cg-local,
    a temporary folder for this process alone.

    Args:
        package: folder of the sources.
        further: files elsewhere that are compiled into its functions.
    """
    sources = [*sorted(package.glob("*.py")), *further]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    asked, ours = os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("CG_LOCAL_CACHE")
    for place in (asked, package / "__pycache__", ours, Path.home() / ".cache" / "cg-local"):
        if place and _can_be_written(folder := _expanded(place) / f"{package.name}-{digest}"):
            return folder
    return Path(tempfile.mkdtemp(prefix="cg-local-"))


@contextmanager
def caching_for(package: Path, *further: Path) -> Iterator[None]:
    """Keep what is declared with cache=True in the block in `cache_folder(package, *further)`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder(package, *further))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _expanded(place: str | Path) -> Path:
    # Of a variable, where no shell has done it; a user whose home is unknown keeps the tilde.
    return Path(os.path.expanduser(place))


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
