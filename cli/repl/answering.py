"""An answer, from the question to its last character on the screen and on the disk.

This file owns the order of computing, showing and saving, and what an interrupt does to it. Invariant: whatever was
computed before an interrupt is kept: in the conversation, in the database, and on the screen.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from cg_local.cli.repl.markdown_stream import MarkdownStream
from cg_local.cli.repl.silent_keys import silent_keys
from cg_local.cli.terminal_text import TerminalFilter
from cg_local.errors import CapacityError, PromptError

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Completion
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.screen import Screen
    from cg_local.config import SamplingParams

    Answer = TypeVar("Answer", bound=Completion)

COMPILING_SECONDS = 5.0
"""When nothing has been computed for so long, kernels are probably being compiled."""


class Interrupts:
    """Lets an interrupt end the computing of a piece, but not the showing or saving of one."""

    def __init__(self) -> None:
        """Begin outside of both."""
        self._is_computing = self._is_pending = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT here; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            if self._is_computing and callable(before):
                before(number, frame)
            else:
                self._is_pending = True

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let an interrupt through; one that came before is raised at once."""
        self._is_computing = True
        try:
            if self._is_pending:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_computing = False


class AnswerView:
    """Shows the text of an answer as it comes.

    Args:
        screen: shows it.
        is_markdown: render it; or show it as it was written.
    """

    def __init__(self, screen: Screen, *, is_markdown: bool) -> None:
        self._filter = TerminalFilter() if screen.is_terminal else None
        self._write, self._last = screen.write, "\n"
        self._markdown = MarkdownStream(screen.write, screen.columns, screen.ink) if is_markdown else None

    def push(self, text: str) -> None:
        """Show the next piece."""
        shown = text if self._filter is None else self._filter.push(text)
        if self._markdown is not None:
            self._markdown.push(shown)
        elif shown:
            self._write(shown)
            self._last = shown[-1]

    def finish(self) -> None:
        """End with the cursor at the start of a line."""
        if self._markdown is not None:
            self._markdown.finish()
        elif self._last != "\n":
            self._write("\n")


def follow(stream: AnswerStream[Answer], view: AnswerView, screen: Screen, on_piece: Callable[[str], None]) -> Answer:
    """Compute, show and save an answer piece by piece, until it ends or is interrupted.

    Args:
        stream: computes.
        view: shows.
        screen: shows that the prompt is being read.
        on_piece: saves.
    """
    shown = 0
    interrupts = Interrupts()
    with interrupts.installed(), silent_keys(), screen.progress(_reading(stream)) as end_progress:
        try:
            while True:
                with interrupts.computing():
                    piece = next(stream, "")
                if not piece:
                    break
                end_progress()
                view.push(piece)
                shown += len(piece)
                on_piece(piece)
        except KeyboardInterrupt:
            pass
        finally:
            # After a fault of any kind too: a sequence left behind would be in the way of the next answer.
            stream.close()
        end_progress()
        rest = stream.result.text[shown:]  # what an interrupt kept from being shown
        view.push(rest)
        on_piece(rest)
        view.finish()
    return stream.result


def _reading(stream: AnswerStream[Answer]) -> Callable[[float], str]:
    """Describe how far the reading of the prompt is."""
    cached = stream.prompt_progress[0]

    def describe(seconds: float) -> str:
        done, total = stream.prompt_progress
        text = f"reading {total - cached:,} tokens"
        if done == cached:
            hint = " (a first run compiles the kernels: about a minute)" if seconds > COMPILING_SECONDS else ""
            return f"{text}, {seconds:.0f} s{hint}"
        left = seconds * (total - done) / (done - cached)
        return f"{text}: {100 * (done - cached) // (total - cached)} %, about {left:.0f} s left"

    return describe


def answer_question(chat: Chat, params: SamplingParams | None = None) -> bool:
    """Let the model answer the question that waits.

    Args:
        chat: its conversation ends with a question.
        params: how to sample; None takes the chat's settings.

    Returns:
        Whether there is an answer. If not, the question was taken back, and is what the editor begins with.
    """
    conversation, screen = chat.conversation, chat.screen
    try:
        prompt = conversation.prompt(chat.model.tokenizer, max_prompt_tokens=chat.max_prompt_tokens)
        chat.save()  # what no prompt can be made of is nothing to be saved
        if prompt.omitted_turns > chat.omitted_turns and prompt.notice is not None:
            screen.warn(f"The context is full: {prompt.notice}.")
        stream = chat.model.chat(
            conversation, params=params or chat.params(), max_prompt_tokens=chat.max_prompt_tokens, stream=True
        )
    except (PromptError, CapacityError) as error:
        screen.error(str(error))
        _take_back(chat)
        return False
    chat.omitted_turns = prompt.omitted_turns
    view = AnswerView(screen, is_markdown=screen.is_rendering and chat.settings.markdown)
    result = follow(stream, view, screen, _saver(chat, stream))
    if result.stop_reason == "interrupted" and not result.text:
        screen.note("Stopped before the answer began; the question is back in the editor.")
        _take_back(chat)
        return False
    is_cut = result.stop_reason in ("interrupted", "max_tokens")
    conversation.answer(result.text, is_cut=is_cut, token_ids=result.token_ids)
    chat.save()
    _count(chat, result)
    _tell_end(chat, result)
    return True


def _saver(chat: Chat, stream: AnswerStream[Completion]) -> Callable[[str], None]:
    """Return what saves the pieces of the answer with their tokens."""
    saved = 0

    def save(piece: str) -> None:
        nonlocal saved
        token_ids = stream.token_ids[saved:]
        saved += len(token_ids)
        if chat.recorder is not None and (piece or token_ids):
            chat.recorder.add(piece, token_ids)

    return save


def _take_back(chat: Chat) -> None:
    chat.next_text = chat.conversation.undo() or ""
    chat.save()


def _count(chat: Chat, result: Completion) -> None:
    chat.last, chat.extra_blocks = result, None
    totals = chat.totals
    totals.answers += 1
    totals.prompt_tokens += result.prompt_tokens
    totals.cached_tokens += result.cached_tokens
    totals.answer_tokens += result.num_tokens
    totals.seconds += result.prefill_seconds + result.decode_seconds


def _tell_end(chat: Chat, result: Completion) -> None:
    """Say why an answer is shorter than the model would have it, and what it took if asked for."""
    screen = chat.screen
    if not result.text.strip() and result.stop_reason != "interrupted":
        screen.note("(an empty answer; /regen tries again)")
    if result.stop_reason == "interrupted":
        screen.note("(stopped; what was written is kept, marked as cut. /regen answers anew, /undo takes it back)")
    elif result.stop_reason == "max_tokens":
        is_full = result.prompt_tokens + result.num_tokens >= chat.model.max_context
        reason = f"the context of {chat.model.max_context:,} tokens is full" if is_full else "max_tokens is reached"
        screen.note(f'(cut: {reason}. "go on" continues)')
    if chat.settings.verbose:
        screen.note(figures(result))


def figures(result: Completion) -> str:
    """Return what an answer took, in one line."""
    computed = result.prompt_tokens - result.cached_tokens
    speed = result.decode_tokens_per_second
    rate = f" at {speed:.1f} tokens/s" if speed is not None else ""
    return (
        f"{result.num_tokens:,} tokens{rate}; prompt {result.prompt_tokens:,} tokens, {result.cached_tokens:,} from "
        f"the cache, {computed:,} computed in {result.prefill_seconds:.2f} s"
    )
