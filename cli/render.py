"""How answers, notices and progress reach a person.

This file owns what goes to stdout and what to stderr. Invariant: the bytes on stdout are the same for a terminal and
for a pipe, but that on a terminal a line break ends the last line, and characters that would steer or deceive it are
shown instead of sent (`terminal_text`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import typer

from cg_local.cli.app import INTERRUPTED, PROGRAM, discard_stdout
from cg_local.cli.terminal_text import TerminalFilter, visible_text

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Completion

    Answer = TypeVar("Answer", bound=Completion)

# From this many seconds on a wait is explained.
_LONG_WAIT_SECONDS = 3.0
_LONG_SILENCE_SECONDS = 10.0
_COMPILING = "(a first run compiles the kernels: about a minute)"


def notice(text: str) -> None:
    """Tell the person something, on stderr."""
    # Names of files and models may hold anything.
    shown = visible_text(text) if sys.stderr.isatty() else text
    sys.stderr.write(f"{PROGRAM}: {shown}\n")
    sys.stderr.flush()


def report_error(message: str) -> None:
    """Tell an error that does not end the command by itself."""
    notice(f"error: {' '.join(message.split())}")


def print_json(document: Mapping[str, object]) -> None:
    """Print a document on stdout as one compact line."""
    write_stdout(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_stdout(text: str) -> None:
    """Write text to stdout as UTF-8, whatever the locale, without translating line breaks.

    Raises:
        BrokenPipeError: nobody reads any more.
        OSError: a full disk, for one; names standard output as the file.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as cause:
        discard_stdout()
        raise OSError(cause.errno, cause.strerror, "standard output") from cause


class Status:
    """One line on stderr that is replaced and finally cleared; on anything but a terminal it shows nothing."""

    def __init__(self) -> None:
        """Start with nothing shown."""
        self._has_person = sys.stderr.isatty()
        # A dumb terminal would show the sequences that take the line away.
        self._is_terminal = self._has_person and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._is_shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._is_terminal:
            with self._lock:
                sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
                sys.stderr.flush()
                self._is_shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown:
            with self._lock:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._is_shown = False

    def progress(self, name: str) -> Callable[[int, int, str], None]:
        """Return a callback that shows how far the quantizing of the embedded model is."""

        def show(done: int, total: int, tensor: str) -> None:
            self.show(f"{name}: quantizing for this machine, once: {100 * done // max(total, 1)} %")

        return show

    @contextmanager
    def waiting(self, text: str, reason: str = _COMPILING) -> Iterator[None]:
        """Show a line while something is waited for, and what may make the wait long; cleared at the end.

        On a terminal that cannot take a line away, a long wait is explained by one that stays.
        """
        if not self._has_person:
            yield
            return
        self.show(text)
        seconds, explain = (_LONG_WAIT_SECONDS, self.show) if self._is_terminal else (_LONG_SILENCE_SECONDS, notice)
        timer = threading.Timer(seconds, lambda: explain(f"{text} {reason}"))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()  # it may be writing: its line must not come after the answer has begun
            self.clear()


class AnswerWriter:
    """Writes an answer to stdout: as it comes on a terminal, at once into a pipe."""

    def __init__(self, newline: str = "\n", is_silent: bool = False) -> None:
        """Prepare.

        Args:
            newline: the line ending of the file; the answer gets it too.
            is_silent: write nothing; a document follows.
        """
        self._newline, self._is_silent = newline, is_silent
        self._is_terminal = sys.stdout.isatty()
        self._filter = TerminalFilter()
        self._written = self._pending = ""

    def write(self, text: str) -> None:
        """Take a piece of the answer."""
        self._written += text
        self._pending += self._filter.push(text) if self._is_terminal else text
        if self._is_terminal:
            self._flush()

    def finish(self) -> None:
        """Write what is pending; on a terminal, end the last line."""
        if self._is_terminal and not self._written.endswith("\n"):
            self._pending += "\n"
        self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, ""
        if pending and not self._is_silent:
            write_stdout(pending.replace("\n", self._newline))


def write_at_once(text: str, newline: str) -> None:
    """Write a whole answer, whatever its line breaks, with the file's."""
    writer = AnswerWriter(newline)
    writer.write(text.replace("\r\n", "\n"))
    writer.finish()


def follow(stream: AnswerStream[Answer], writer: AnswerWriter) -> Answer:
    """Write a stream's pieces as they come; an interrupt ends it and keeps what there is.

    Returns:
        The result; its stop_reason is "interrupted" after an interrupt.
    """
    shown = 0
    pieces = iter(stream)
    try:
        with Status().waiting("reading the prompt ..."):
            piece = next(pieces, "")
        while piece:
            writer.write(piece)
            shown += len(piece)
            piece = next(pieces, "")
    except KeyboardInterrupt:
        stream.close()
    writer.write(stream.result.text[shown:])
    writer.finish()
    return stream.result


def end_answer(result: Completion, *, is_quiet: bool, chosen: Completion | None = None) -> None:
    """Tell what was left out of the prompt and, if a person is watching, how it went.

    Args:
        result: the answer.
        is_quiet: leave the figures out, because a document holds them.
        chosen: the one of several answers that was taken; `result` then tells of the prompt alone.

    Raises:
        typer.Exit: with status 130, when the answer was interrupted.
    """
    tell_cut(result)
    if not is_quiet and sys.stderr.isatty():
        answer = chosen or result
        speed = answer.decode_tokens_per_second
        rate = f", {speed:.0f} tokens/s" if speed is not None else ""
        end = "interrupted" if result.stop_reason == "interrupted" else f"stopped by {answer.stop_reason}"
        notice(f"{answer.num_tokens} tokens{rate}, prompt {result.prompt_tokens} tokens, {end}")
    if result.stop_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def tell_cut(result: Completion, name: str | None = None) -> None:
    """Tell a person what was left out of a prompt; a document has it as `truncated`.

    Args:
        result: the answer.
        name: of the place, where there are several.
    """
    if result.notice is not None and sys.stderr.isatty():
        notice(f"{name}: {result.notice}" if name else result.notice)


def timings(load_seconds: float, result: Completion) -> dict[str, float | None]:
    """Return the member `timings` of a document."""
    return {
        "load_ms": round(1000 * load_seconds, 1),
        "prefill_ms": round(1000 * result.prefill_seconds, 1),
        "decode_ms": round(1000 * result.decode_seconds, 1),
        "prefill_tokens_per_second": _rounded(result.prefill_tokens_per_second),
        "decode_tokens_per_second": _rounded(result.decode_tokens_per_second),
    }


def speculation_counts(result: Completion) -> dict[str, int]:
    """Return the member `speculation` of a document."""
    return {"drafted": result.drafted_tokens, "accepted": result.accepted_tokens}


def rounded_logprob(value: float | None) -> float | None:
    """Return a logarithm of a probability with the digits that mean something."""
    return None if value is None else round(value, 4)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
