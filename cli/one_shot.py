"""One answer and the end: for a person, or for a program.

This file owns the form in which the answer goes to stdout. Reading the question is `request`'s work. Invariant: stdout
holds the answer, the code block or the document that was asked for, and nothing else; whatever was computed before an
interrupt or a closed pipe is saved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import typer

from cg_local.cli.app import INTERRUPTED
from cg_local.cli.render import Status, notice, print_json, rounded_logprob, speculation_counts, timings, write_stdout
from cg_local.errors import PromptError

if TYPE_CHECKING:
    from cg_local.answers import AnswerStream, Completion
    from cg_local.cli.request import Prepared, Request
    from cg_local.conversation import Conversation
    from cg_local.runtime import LocalModel
    from cg_local.sessions import SessionRecorder

NO_CODE_BLOCK = 1  # exit status of --extract


@dataclass
class Answerer:
    """What answers and what is kept of it.

    Attributes:
        model: who answers.
        conversation: empty, or a saved one to go on with.
        recorder: saves; None: nothing is saved.
        max_tokens: of the answer; None: what the context holds.
        sampling: temperature and its like, as SamplingParams takes them.
        verbose: tell what the answer took.
    """

    model: LocalModel
    conversation: Conversation
    recorder: SessionRecorder | None = None
    max_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False


def answer_once(prepared: Prepared, request: Request, answerer: Answerer) -> None:
    """Ask and write the answer.

    Raises:
        PromptError: the question is too long, or the model is not tuned for chat.
        typer.Exit: 130 after an interrupt; 1 where a code block was asked for and there is none.
    """
    from cg_local.config import SamplingParams

    model, conversation = answerer.model, answerer.conversation
    if not model.is_chat_model and not request.force:
        raise PromptError(
            f"{model.name} is a base model, not tuned for chat; `cg-local complete` continues a text with it, and "
            "--force lets it answer all the same"
        )
    if prepared.system:
        conversation.system = prepared.system
    waiting = conversation.undo() if conversation.is_waiting else None
    text = _fitting_text(prepared, request, answerer)
    # A question whose answer never came stays, as the beginning of this one.
    conversation.ask(text if waiting is None else f"{waiting}\n\n{text}")
    _save_question(prepared, answerer)
    max_tokens = min(answerer.max_tokens or model.max_context, model.max_context)
    params = SamplingParams(max_tokens=max_tokens, **answerer.sampling)
    stream = model.chat(conversation, params=params, max_prompt_tokens=_room(answerer), stream=True)
    is_whole = request.json or prepared.extract
    view = _Silent(is_until_block=prepared.extract) if is_whole else _view(request)
    result, is_interrupted = _follow(stream, view, answerer)
    if request.json:
        print_json(_document(answerer, result))
    block = _first_block(result) if prepared.extract and not request.json else None
    if block is not None:
        write_stdout(block)
    model.save_prefix()
    if result.notice is not None:
        notice(result.notice)
    if answerer.verbose:
        from cg_local.cli.repl.answering import figures

        notice(figures(result))
    if is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if prepared.extract and not request.json and block is None:
        notice("the answer has no code block; without --extract it is shown whole")
        raise typer.Exit(NO_CODE_BLOCK)
    if result.stop_reason == "max_tokens":
        notice("the answer is cut: --max-tokens, or the context, is reached")


class View(Protocol):
    """Shows an answer as it comes."""

    def push(self, text: str) -> bool | None:
        """Show the next piece; True where no more is wanted."""

    def finish(self) -> None:
        """Show what is left."""


class LineView:
    """For pipes and files: whole lines as soon as they are there, as the model wrote them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._pending = ""

    def push(self, text: str) -> None:
        """Write the lines that the next piece ends."""
        lines, mark, rest = (self._pending + text).rpartition("\n")
        if mark:
            write_stdout(lines + mark)
        self._pending = rest

    def finish(self) -> None:
        """Write the last line, ended."""
        if self._pending:
            write_stdout(self._pending + "\n")
            self._pending = ""


class _Silent:
    """Shows nothing, because a document or a block follows; with `is_until_block` the first block is enough."""

    def __init__(self, *, is_until_block: bool) -> None:
        self._text, self._is_until_block = "", is_until_block

    def push(self, text: str) -> bool:
        self._text += text
        # Only a line that ends can close a block.
        return self._is_until_block and "\n" in text and _is_block_closed(self._text)

    def finish(self) -> None:
        pass


def _is_block_closed(text: str) -> bool:
    """Whether the first code block of a text has its closing fence."""
    from cg_local.code_blocks import code_blocks

    lines = text[: text.rfind("\n") + 1]
    # An open block takes up a line that is added.
    return bool(code_blocks(lines)) and code_blocks(lines)[0] == code_blocks(lines + ".\n")[0]


def _room(answerer: Answerer) -> int:
    from cg_local.cli.repl.chat_state import ANSWER_SHARE

    context = answerer.model.max_context
    room = max(1, context // ANSWER_SHARE)
    return context - min(answerer.max_tokens or room, room)


def _fitting_text(prepared: Prepared, request: Request, answerer: Answerer) -> str:
    """Return what to ask, cut if it must be and may be."""
    from cg_local.conversation import Conversation, Message
    from cg_local.question import fit

    tokenizer, limit = answerer.model.tokenizer, _room(answerer)
    # What the template of a turn and the system text take of the room.
    system = [Message("system", prepared.system)] if prepared.system else []
    frame = Conversation([*system, Message("user", "x")]).prompt(tokenizer, max_prompt_tokens=1 << 30)
    room = limit - len(frame.token_ids)
    text, cut = fit(tokenizer, prepared.question, prepared.text, room, may_cut=request.truncate)
    if cut is not None:
        notice(cut)
    return text


def _save_question(prepared: Prepared, answerer: Answerer) -> None:
    from cg_local.conversation import Message
    from cg_local.sessions.store import title_of

    if answerer.recorder is None:
        return
    title = title_of([Message("user", prepared.question.words)])
    if prepared.template is not None:
        about = title or ", ".join(file.title for file in prepared.question.files)
        title = f"{prepared.template.name}: {about}" if about else prepared.template.name
    if title and len(answerer.conversation.turns) == 1:
        answerer.recorder.rename(title)
    answerer.recorder.save(answerer.conversation.messages)


def _view(request: Request) -> View:
    if not sys.stdout.isatty():
        return LineView()
    from cg_local.cli.repl.answering import AnswerView
    from cg_local.cli.repl.screen import Screen

    screen = Screen(is_plain=not request.markdown)
    return AnswerView(screen, is_markdown=screen.is_rendering and request.markdown)


def _follow(stream: AnswerStream[Completion], view: View, answerer: Answerer) -> tuple[Completion, bool]:
    """Show and save an answer as it comes; keep it whatever ends it.

    Returns:
        The answer, and whether an interrupt ended it.
    """
    add = _saver(stream, answerer)
    shown, is_interrupted = 0, False
    try:
        with Status().waiting("reading the question ..."):
            piece = next(stream, "")
        while piece:
            shown += len(piece)
            add(piece)
            if view.push(piece):
                break
            piece = next(stream, "")
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        stream.close()
        result = stream.result
        add(result.text[shown:])
        is_cut = result.stop_reason in ("interrupted", "max_tokens")
        if result.text or not is_cut:
            answerer.conversation.answer(result.text, is_cut=is_cut, token_ids=result.token_ids)
        if answerer.recorder is not None:
            answerer.recorder.save(answerer.conversation.messages)
            answerer.recorder.close()
    view.push(result.text[shown:])
    view.finish()
    return result, is_interrupted


def _saver(stream: AnswerStream[Completion], answerer: Answerer) -> Callable[[str], None]:
    saved = 0

    def add(piece: str) -> None:
        nonlocal saved
        token_ids = stream.token_ids[saved:]
        saved += len(token_ids)
        if answerer.recorder is not None and (piece or token_ids):
            answerer.recorder.add(piece, token_ids)

    return add


def _first_block(result: Completion) -> str | None:
    from cg_local.code_blocks import code_blocks

    blocks = code_blocks(result.text)
    return blocks[0].text if blocks else None


def _document(answerer: Answerer, result: Completion) -> dict[str, object]:
    from cg_local.code_blocks import code_blocks

    model, recorder = answerer.model, answerer.recorder
    return {
        "model": model.name,
        "scheme": model.scheme,
        "session": recorder.session_id if recorder is not None else None,
        "text": result.text,
        "code_blocks": [{"language": block.language, "text": block.text} for block in code_blocks(result.text)],
        "stop_reason": result.stop_reason,
        "mean_logprob": rounded_logprob(result.mean_logprob),
        "num_tokens": result.num_tokens,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "truncated": result.truncated,
        "timings": timings(model.load_seconds, result),
        "speculation": speculation_counts(result),
    }
