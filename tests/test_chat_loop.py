"""The loop of a chat, in this process: lines go in, and what is said, kept and given back is looked at."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Inside
from scripted_chat import ScriptedModel

from cg_local import runtime
from cg_local.cli import request
from cg_local.cli.repl.editor import PlainEditor
from cg_local.cli.repl.prefix_saver import PrefixSaver
from cg_local.conversation import Conversation, Message
from cg_local.errors import SessionError
from cg_local.runtime import LocalModel
from cg_local.sessions import SavedSession, SessionRecorder, SessionStore

ASK, ANSWER = Message("user", "say hello"), Message("model", "hello")
Talk = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("CG_LOCAL_STATE", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def talk(
    chat_folder: Path, home: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Talk:
    """A function from arguments and lines to a whole chat; what is no terminal reads its lines plainly."""
    monkeypatch.setattr(runtime, "Model", ScriptedModel)
    monkeypatch.setattr(request, "has_terminal_input", lambda: True)
    inside = Inside(capfdbinary, monkeypatch)

    def run(*arguments: str, lines: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        return inside.run("chat", "--model", str(chat_folder), *arguments, home=home)

    return run


def database(home: Path) -> Path:
    return home / "data" / "sessions" / "sessions.db"


def saved(home: Path) -> list[SavedSession]:
    """The saved conversations, the newest first."""
    with contextlib.suppress(SessionError), SessionStore(database(home), is_read_only=True) as store:
        return [store.load(each.session_id) for each in store.summaries()]
    return []


def begin(home: Path, *messages: Message) -> str:
    """Save a conversation, as an earlier chat would have; returns its id."""
    recorder = SessionRecorder(pytest.fail, path=database(home))
    recorder.save(messages)
    recorder.close()
    assert recorder.session_id is not None
    return recorder.session_id


@pytest.mark.parametrize("how", ["a chat", "one answer"])
def test_saved_conversation_keeps_its_system_text_over_the_settings(talk: Talk, home: Path, how: str) -> None:
    session_id = begin(home, Message("system", "Its own."), ASK, ANSWER)
    (home / "config.toml").write_text('[chat]\nsystem = "Of the settings."\n')
    arguments, lines = ([], b"first\n") if how == "a chat" else (["first"], b"")
    for way in (["--continue"], ["--session", session_id]):
        assert talk(*way, *arguments, lines=lines).returncode == 0
        assert saved(home)[0].messages[0] == Message("system", "Its own.")
    assert talk("--continue", "--system", "Asked for.", *arguments, lines=lines).returncode == 0
    (session,) = saved(home)
    assert session.messages[0] == Message("system", "Asked for.")
    assert session.num_messages == 8


def test_new_conversation_takes_the_system_text_of_the_settings(talk: Talk, home: Path) -> None:
    (home / "config.toml").write_text('[chat]\nsystem = "Of the settings."\n')
    talk(lines=b"first\n")
    assert saved(home)[0].messages[0] == Message("system", "Of the settings.")


def test_conversation_begun_after_another_model_was_chosen_is_saved_as_that_ones(
    talk: Talk, home: Path, chat_folder: Path
) -> None:
    other = home / "other-it"
    shutil.copytree(chat_folder, other)
    talk(lines=f"say hello\n/model {other}\nsay more\n/clear\nsay anew\n".encode())
    assert [(session.title, session.model) for session in saved(home)] == [
        ("say anew", str(other)),
        ("say hello", str(chat_folder)),
    ]


def test_half_a_character_in_a_question_is_one_line(talk: Talk, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(["say \ud800", "say hello"])

    def read(self: PlainEditor, text: str = "") -> str:
        given.append(text)
        try:
            return next(asked)
        except StopIteration:
            raise EOFError from None

    given: list[str] = []
    monkeypatch.setattr(PlainEditor, "read", read)
    errors = talk().stderr.decode().splitlines()
    [told] = [line for line in errors if "surrogate" in line or "half" in line or "error" in line]
    assert "is the lone surrogate U+D800, which is no Unicode text" in told
    assert given == ["", "say \ud800", ""]
    assert saved(home)[0].messages[0] == ASK


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError, ZeroDivisionError])
@pytest.mark.parametrize("place", ["prompt", "chat"])
def test_question_that_a_fault_keeps_from_being_asked_comes_back_with_its_files(
    talk: Talk, home: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException], place: str
) -> None:
    (home / "a.txt").write_text("first\n")
    owner, name = (Conversation, "prompt") if place == "prompt" else (LocalModel, "chat")
    whole, calls = getattr(owner, name), iter(range(100))

    def faulty(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 0:
            raise fault
        return whole(*arguments, **keywords)

    monkeypatch.setattr(owner, name, faulty)
    # An empty line sends what the editor begins with.
    done = talk("--file", "a.txt", lines=b"lines\n\nturns\n")
    assert b"2 turns before" in done.stdout
    assert b" lines" in done.stdout
    (session,) = saved(home)
    assert [message.role for message in session.messages] == ["user", "model"] * 2
    assert session.messages[0].text.startswith("a.txt:\n```txt\nfirst\n```")


def test_fault_while_an_answer_is_made_anew_keeps_the_old_one(
    talk: Talk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(home, ASK, ANSWER)
    with monkeypatch.context() as patch:
        patch.setattr(LocalModel, "chat", lambda *arguments, **keywords: interrupt())
        talk("--continue", lines=b"/regen\n")
    assert saved(home)[0].messages == (ASK, ANSWER)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_interrupt_between_two_questions_gives_the_line_back(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    end, calls = PrefixSaver.end, iter(range(100))

    def interrupted(self: PrefixSaver, *, is_complete: bool = False) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        end(self, is_complete=is_complete)

    monkeypatch.setattr(PrefixSaver, "end", interrupted)
    done = talk(lines=b"say one\nturns\n\n")
    assert (done.returncode, b"2 turns before" in done.stdout) == (0, True)


def test_bytes_that_are_no_text_do_not_end_the_chat(talk: Talk) -> None:
    done = talk(lines=b"say \xff bytes\nsay more\n")
    assert (done.returncode, "\N{REPLACEMENT CHARACTER} bytes" in done.stdout.decode()) == (0, True)
    assert b"more" in done.stdout
