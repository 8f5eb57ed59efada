"""Answers in a chat with the real engine: interrupts in prefill and decode, saving, and what is said at the end."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cg_local import runtime
from cg_local.cli.repl.answering import answer_question
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.repl.history import QuestionHistory
from cg_local.cli.repl.screen import Screen
from cg_local.cli.repl.settings import ChatSettings
from cg_local.conversation import Conversation
from cg_local.model import Model
from cg_local.runtime import LocalModel
from cg_local.sessions import SessionRecorder, SessionStore

QUESTION = "What is a page? " * 20


@pytest.fixture(scope="module")
def model(toy_folder: Callable[[str, str], Path]) -> LocalModel:
    return runtime.load(toy_folder("mqa", "q4"))


class ShownScreen(Screen):
    """A screen without a terminal, whose text a test can read."""

    def __init__(self) -> None:
        super().__init__(is_plain=True)
        self.shown = io.StringIO()

    def write(self, text: str) -> None:
        self.shown.write(text)

    def write_aside(self, text: str) -> None:
        self.shown.write(text)


@pytest.fixture
def chat(model: LocalModel, tmp_path: Path, no_page_leaks: None) -> Iterator[Chat]:
    recorder = SessionRecorder(pytest.fail, path=tmp_path / "sessions.db")
    settings = ChatSettings(temperature=3.0, seed=11, max_tokens=24)
    history = QuestionHistory(None, pytest.fail)
    chat = Chat(model, Conversation(), settings, ShownScreen(), history, recorder, runtime.load)
    yield chat
    recorder.close()


def shown(chat: Chat) -> str:
    assert isinstance(chat.screen, ShownScreen)
    return chat.screen.shown.getvalue()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let an interrupt come in the middle of the n-th step of the model."""
    forward, steps = Model.forward, iter(range(1000))

    def interrupted(self: Model, *arguments: Any) -> Any:
        if next(steps) == number:
            signal.raise_signal(signal.SIGINT)
        return forward(self, *arguments)

    monkeypatch.setattr(Model, "forward", interrupted)


def test_answer_is_shown_kept_with_its_tokens_and_saved(chat: Chat, tmp_path: Path) -> None:
    chat.conversation.ask(QUESTION)
    assert answer_question(chat)
    answer = chat.conversation.answers[0]
    assert answer.text
    assert len(answer.token_ids) == 24
    assert "(cut: max_tokens is reached." in shown(chat)
    with SessionStore(tmp_path / "sessions.db") as store:
        assert store.load(store.find("last").session_id).messages == chat.conversation.messages


def test_interrupt_in_prefill_takes_the_question_back(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 0)
    chat.conversation.ask(QUESTION)
    assert not answer_question(chat)
    assert chat.conversation.messages == ()
    assert chat.next_text == QUESTION
    assert "Stopped before the answer began" in shown(chat)


def test_interrupt_in_decode_keeps_what_was_written(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.conversation.ask(QUESTION)
    assert answer_question(chat)
    [whole] = chat.conversation.answers
    chat.conversation.take_back_answer()
    interrupt_at(monkeypatch, 9)
    assert answer_question(chat)
    [cut] = chat.conversation.answers
    assert cut.is_cut
    assert 0 < len(cut.text) < len(whole.text)
    assert whole.text.startswith(cut.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    with SessionStore(tmp_path / "sessions.db") as store:
        assert store.load(store.find("last").session_id).messages == chat.conversation.messages


def test_fault_in_a_step_leaves_no_sequence_behind(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Model, *arguments: Any) -> Any:
        raise ZeroDivisionError

    chat.conversation.ask(QUESTION)
    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", broken)
        with pytest.raises(ZeroDivisionError):
            answer_question(chat)
    assert answer_question(chat)


def test_status_line_names_what_fits(chat: Chat) -> None:
    chat.conversation.ask(QUESTION)
    assert answer_question(chat)
    assert chat.last is not None
    used = chat.last.prompt_tokens + 24
    wide = chat.status(120)
    assert wide.startswith(f"mqa-q4 · {used} of 1,024 tokens ({100 * used // 1024} %) · ")
    assert wide.endswith(" · /help")
    assert chat.status(40) == wide.split(" · /help")[0].rsplit(" · ", wide.count(" · ") - 2)[0]
    assert all(len(chat.status(columns)) <= max(columns, 6) for columns in range(120))
