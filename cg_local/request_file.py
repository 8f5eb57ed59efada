"""Files of requests and of results, one JSON document a line.

This file owns reading and judging requests, and results that appear whole. It asks no model. Invariant: at the place of
the results there is nothing or all of them, in the order of the requests; what a killed run had finished is in a hidden
sibling and is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from cg_local.atomic_folder import is_same_file, lock_exclusively
from cg_local.errors import BatchError
from cg_local.safetensors_file import shown

# The first of these that a line has is what its answer is compared with.
EXPECTED_KEYS = ("expected", "canonical", "canonical_solution")
ID_KEYS = ("id", "task_id")
KINDS = '{"prompt": ...}, {"prefix": ..., "suffix": ...} or {"text": ...}'


@dataclass(frozen=True)
class Request:
    """One line of a file of requests.

    Attributes:
        line: its number, from 1.
        prefix: what comes before the answer; None where there is nothing to answer.
        suffix: what comes after it; None: the prefix is to be continued.
        path: of the file that the gap is in; None: unknown.
        text: to be scored; None where there is something to answer.
        expected: what the answer should be; None: not given.
        request_id: what the line calls itself ("id" or "task_id"), as given; None: nothing.
    """

    line: int
    prefix: str | None = None
    suffix: str | None = None
    path: str | None = None
    text: str | None = None
    expected: str | None = None
    request_id: object = None

    @property
    def label(self) -> dict[str, object]:
        """The members that begin its result."""
        return {"line": self.line} | ({} if self.request_id is None else {"id": self.request_id})


def read_requests(path: str | Path, *, is_evaluation: bool) -> list[Request]:
    """Read a file of requests; empty lines are passed over, unknown members too.

    {"prompt"} is continued; {"prefix", "suffix"} (or {"prompt", "suffix"}, as HumanEval's infilling tasks have it, with
    "path" if known) is filled; {"text"} is scored.

    Args:
        path: of the file, UTF-8.
        is_evaluation: the requests are to be evaluated: a text is welcome, an answer needs something to compare with.

    Raises:
        BatchError: the file cannot be read, has no request, or a line is none; the message names the line.
    """
    where = str(path)
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise BatchError(f"{where}: {error.strerror}; give a file of requests, one JSON document a line") from error
    requests = [
        _parse(line, f"{where}: line {number}", number, is_evaluation)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not requests:
        raise BatchError(f"{where}: has no line; each request is a line {KINDS}")
    return requests


def _parse(line: bytes, where: str, number: int, is_evaluation: bool) -> Request:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{where}: not JSON ({' '.join(str(error).split())[:120]}); a request is {KINDS}") from error
    if not isinstance(values, dict):
        raise BatchError(f"{where}: a JSON {type(values).__name__}, not an object; a request is {KINDS}")
    for key in ("prompt", "prefix", "suffix", "path", "text", *EXPECTED_KEYS):
        if not isinstance(values.get(key, ""), str):
            raise BatchError(f"{where}: {key!r} is {shown(values[key])}; it must be a text")
    request = _request(values, where, number)
    try:
        json_line(vars(request)).encode()
    except UnicodeEncodeError as error:
        raise BatchError(f"{where}: has half a character (a lone surrogate); escape both halves, or neither") from error
    if request.text is not None and not is_evaluation:
        raise BatchError(
            f"{where}: a 'text' is for `cg-local eval`; here a request needs 'prompt' or 'prefix', 'suffix'"
        )
    if is_evaluation and request.text is None and request.expected is None:
        raise BatchError(f"{where}: nothing to compare an answer with; add 'expected', or give a 'text' to score")
    return request


def _request(values: Mapping[str, object], where: str, number: int) -> Request:
    def text_of(*keys: str) -> str | None:
        return next((str(values[key]) for key in keys if key in values), None)

    given = [key for key in ("text", "prompt", "prefix") if key in values]
    if len(given) != 1:
        found = f"both {given[0]!r} and {given[1]!r}" if given else f"the members {shown(', '.join(values))}"
        raise BatchError(f"{where}: has {found}; a request is {KINDS}")
    if given == ["prefix"] and "suffix" not in values:
        raise BatchError(f"{where}: has a 'prefix' and no 'suffix'; a text that is to be continued is a 'prompt'")
    return Request(
        line=number,
        prefix=text_of("prompt", "prefix"),
        suffix=text_of("suffix"),
        path=text_of("path"),
        text=text_of("text"),
        expected=text_of(*EXPECTED_KEYS),
        request_id=next((values[key] for key in ID_KEYS if key in values), None),
    )


def fingerprint(source: str | Path, settings: Mapping[str, object]) -> str:
    """Return a name for "these requests with these settings": 12 hexadecimal digits."""
    digest = hashlib.sha256(Path(source).read_bytes())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


class ResultFile:
    """Context manager: results are appended to a hidden sibling (`.NAME.MARK.partial`); `commit` gives it the name.

    Args:
        path: where the results shall appear.
        mark: from `fingerprint`: what a killed run with the same mark has finished is kept.
        overwrite: replace a file at the path.

    Attributes:
        num_done: results that were there already.

    Raises:
        BatchError: something is at the path, or the folder cannot be written.
    """

    def __init__(self, path: str | Path, mark: str, *, overwrite: bool = False) -> None:
        self._path = Path(path)
        if self._path.is_dir() or (self._path.exists() and not overwrite):
            raise BatchError(f"{path}: exists already; choose another name, or add --overwrite")
        self._partial = self._path.with_name(f".{self._path.name}.{mark}.partial")
        self._file: IO[bytes] | None = None
        self.num_done = 0

    def __enter__(self) -> ResultFile:
        """Open the sibling behind its last whole line."""
        try:
            self._file = self._open_alone()
            self._file.seek(0)
            whole = self._file.read().rpartition(b"\n")[0]
            self.num_done = whole.count(b"\n") + 1 if whole else 0
            self._file.truncate(len(whole) + 1 if whole else 0)
        except OSError as error:
            raise BatchError(f"{self._path}: cannot be written ({error.strerror}); choose a writable place") from error
        return self

    def _open_alone(self) -> IO[bytes]:
        """Open and lock the sibling; two runs would write it one over the other."""
        while True:
            file = self._partial.open("a+b")
            try:
                lock_exclusively(file.fileno())
            except OSError as error:
                file.close()
                raise BatchError(
                    f"{self._path}: another process is computing these results now; wait for it, or choose another name"
                ) from error
            # The run that held it may have removed it, or given it its name, meanwhile.
            if is_same_file(file.fileno(), self._partial):
                return file
            file.close()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; an unfinished sibling stays for the next run, unless nothing is in it."""
        if self._file is not None:
            self._file.close()
            if self._partial.exists() and self._partial.stat().st_size == 0:
                self._partial.unlink()

    def write(self, results: Iterable[Mapping[str, object]]) -> None:
        """Append results; they survive the process.

        Raises:
            BatchError: the disk is full, or fails.
        """
        assert self._file is not None
        try:
            self._file.write(b"".join(json_line(result).encode() for result in results))
            self._file.flush()
        except OSError as error:
            raise BatchError(f"{self._path}: cannot be written ({error.strerror}); make room and run again") from error

    def read(self) -> list[dict[str, object]]:
        """Return all results so far."""
        assert self._file is not None
        self._file.seek(0)  # through the handle that holds the lock; what is written goes to the end all the same
        return [json.loads(line) for line in self._file.read().splitlines()]

    def commit(self) -> None:
        """Give the results their name."""
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise BatchError(
                f"{self._path}: the results cannot get their name ({error.strerror}); they are in {self._partial}"
            ) from error


def json_line(document: Mapping[str, object]) -> str:
    """Return a document as one compact line, with its line break."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
