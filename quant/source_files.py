"""The source's files: what they are when a conversion begins, their digests, and whether they stayed as they were.

This file owns hashing beside the conversion. It knows no checkpoint and no journal. Invariant: a digest it returns is
of all bytes of a file whose size and time of change are those in `stamps`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cg_local.errors import CheckpointError

HASH_BYTES = 1 << 20


class SourceFiles:
    """Context manager: computes the SHA-256 of files in a thread of its own while it is entered.

    Attributes:
        stamps: by name, {"bytes", "mtime_ns"}: how the files were found.
    """

    stamps: dict[str, dict[str, int]]

    def __init__(self, paths: tuple[Path, ...]) -> None:
        """Look at the files without reading them.

        Args:
            paths: of the files; their names differ.

        Raises:
            CheckpointError: a file cannot be looked at.
        """
        self._paths = paths
        self.stamps = {path.name: _stamp(path) for path in paths}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._futures: dict[str, Future[str]] = {}

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, known: Mapping[str, str]) -> None:
        """Begin to compute digests.

        Args:
            known: digests that an earlier run computed of files with the same stamps, by name.
        """
        for path in self._paths:
            if path.name in known:
                self._futures[path.name] = Future()
                self._futures[path.name].set_result(known[path.name])
            else:
                self._futures[path.name] = self._pool.submit(self._digest, path)

    def finished(self) -> dict[str, str]:
        """Return the digests computed so far, by name.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return {name: future.result() for name, future in self._futures.items() if future.done()}

    def result(self) -> dict[str, dict[str, object]]:
        """Wait for all digests: {name: {"bytes", "sha256"}}.

        Raises:
            CheckpointError: a file cannot be read, or is not what it was at the beginning.
        """
        digests = {name: future.result() for name, future in self._futures.items()}
        for path in self._paths:
            if _stamp(path) != self.stamps[path.name]:
                raise CheckpointError(f"{path}: changed while it was being quantized; run the command again")
        return {name: {"bytes": self.stamps[name]["bytes"], "sha256": digests[name]} for name in self.stamps}

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while not self._stop.is_set() and (data := file.read(HASH_BYTES)):
                    digest.update(data)
        except OSError as cause:
            raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); check the disk") from cause
        return digest.hexdigest()


def _stamp(path: Path) -> dict[str, int]:
    try:
        status = path.stat()
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); check the path") from cause
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
