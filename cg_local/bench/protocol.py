"""The asking side of a worker process: one JSON object a line, a request out and its answer in.

This file owns starting, asking and ending workers. It does not know what is measured. Invariant: a worker never
outlives the object that started it, and its failure is a BenchmarkError that quotes the last thing it said.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from cg_local.errors import BenchmarkError

CLOSE_SECONDS = 5.0
_SHOWN_CHARACTERS = 300


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without what `cg_local.kernels` added to it: that is for its own threads."""
    added: dict[str, str] = getattr(sys.modules.get("cg_local.kernels"), "ADDED_ENVIRONMENT", {})
    return {name: value for name, value in os.environ.items() if added.get(name) != value}


class WorkerProcess:
    """A worker, started at once; a context manager that ends it.

    Args:
        name: what messages call it.
        command: program and arguments.
        environment: variables to add.

    Raises:
        BenchmarkError: the program cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._is_answering = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        try:
            # A session of its own: an interrupt at the terminal reaches the asking side alone, which ends the worker.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**inherited_environment(), **(environment or {})},
                start_new_session=sys.platform != "win32",
                text=True,
                encoding="utf-8",
            )
        except OSError as cause:
            self._errors.close()
            raise BenchmarkError(
                f"{name}: {command[0]} cannot be started ({cause.strerror}); give the path of an interpreter that works"
            ) from cause

    def __enter__(self) -> WorkerProcess:
        """Return the worker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker."""
        self.close()

    @property
    def process_id(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            do: what is asked for.
            arguments: of the request, JSON values.

        Raises:
            BenchmarkError: the worker ended, reports an error, or answers what is no JSON object.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._is_answering = True
        with contextlib.suppress(OSError):  # it ended: reading finds out
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        self._is_answering = False
        if not line:
            status = self._wait()
            raise BenchmarkError(f"{self.name}: ended with status {status} when asked to {do}: {self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError as cause:
            raise BenchmarkError(f"{self.name}: answered {line[:80]!r}, which is no JSON") from cause
        if not isinstance(answer, dict):
            raise BenchmarkError(f"{self.name}: answered {line[:80]!r}, which is no JSON object")
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the worker: by the end of its input, or by force where it is still busy with a request."""
        if self._is_answering:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._wait()
        self._errors.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][-_SHOWN_CHARACTERS:] if lines else "it said nothing"
