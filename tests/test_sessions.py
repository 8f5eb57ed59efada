"""Saved conversations: what is written is what is read, whatever was undone, killed or written by others meanwhile."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cg_local.conversation import Message
from cg_local.errors import RevisionError, SessionError
from cg_local.sessions import SavedSession, SessionRecorder, SessionStore
from cg_local.sessions.database import Database, database_path
from cg_local.sessions.store import Removal, title_of

ASK = Message("user", "How do I read a TOML file?")
ANSWER = Message("model", "Use `tomllib`.", token_ids=(7, 300_000, 5))
SYSTEM = Message("system", "Be brief.")


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CG_LOCAL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def recorder(notices: list[str]) -> Iterator[SessionRecorder]:
    recorder = SessionRecorder(notices.append, model="nano")
    yield recorder
    recorder.close()


def saved(recorder: SessionRecorder) -> SavedSession:
    """What another process reads of the recorder's conversation."""
    assert recorder.session_id is not None
    with SessionStore(is_read_only=True) as store:
        return store.load(recorder.session_id)


def test_conversation_reads_as_it_was_written(recorder: SessionRecorder, notices: list[str]) -> None:
    recorder.settings = {"temperature": 0.5}
    assert recorder.save([SYSTEM, ASK])
    assert recorder.save([SYSTEM, ASK, ANSWER])

    found = saved(recorder)
    assert found.messages == (SYSTEM, ASK, ANSWER)
    assert (found.title, found.model, found.num_messages) == ("How do I read a TOML file?", "nano", 2)
    assert found.settings == {"temperature": 0.5}
    assert notices == []


def test_nothing_is_written_before_the_first_message(recorder: SessionRecorder) -> None:
    assert recorder.save([])
    recorder.add("text")
    assert not database_path().exists()


@pytest.mark.parametrize(
    "later",
    [
        (ASK,),
        (ASK, Message("model", "other")),
        (Message("user", "other"),),
        (SYSTEM, ASK, ANSWER),
        (),
        (ASK, ANSWER, Message("user", "more"), Message("model", "x", is_cut=True)),
    ],
)
def test_any_later_state_replaces_what_was_saved(recorder: SessionRecorder, later: tuple[Message, ...]) -> None:
    recorder.save([ASK, ANSWER])
    recorder.save(later)
    assert saved(recorder).messages == later


def test_pieces_of_an_answer_under_way_are_read_as_a_cut_answer_with_its_tokens(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    for piece, token_ids in (("Use ", (1,)), ("", (2,)), ("tomllib", (3, 4))):
        recorder.add(piece, token_ids)

    expected = Message("model", "Use tomllib", is_cut=True, token_ids=(1, 2, 3, 4))
    assert saved(recorder).messages == (ASK, expected)


def test_end_of_an_answer_replaces_its_pieces(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    recorder.add("Use `tom")
    recorder.save([ASK, ANSWER])

    assert saved(recorder).messages == (ASK, ANSWER)
    with sqlite3.connect(database_path()) as connection:
        assert connection.execute("SELECT count(*) FROM pieces").fetchone() == (0,)
    connection.close()


def test_answer_that_was_taken_back_while_it_was_written_is_gone(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    recorder.add("Use")
    recorder.save([ASK])
    assert saved(recorder).messages == (ASK,)


def test_resumed_conversation_goes_on_in_its_place(recorder: SessionRecorder, notices: list[str]) -> None:
    recorder.save([ASK, ANSWER])
    other = SessionRecorder(notices.append, model="2b")
    other.resume(saved(recorder))
    other.save([ASK, ANSWER, Message("user", "And write?")])
    other.close()

    found = saved(recorder)
    assert found.messages[2].text == "And write?"
    assert (found.model, notices) == ("nano", [])


def test_new_conversation_leaves_the_old_one_as_it_was(recorder: SessionRecorder) -> None:
    recorder.save([ASK, ANSWER])
    first = recorder.session_id
    recorder.begin()
    recorder.save([Message("user", "Something else")])

    assert recorder.session_id != first
    with SessionStore() as store:
        assert [each.title for each in store.summaries()] == ["Something else", "How do I read a TOML file?"]
        assert store.find("last").session_id == recorder.session_id


def test_name_given_before_or_after_the_first_message_stays(recorder: SessionRecorder) -> None:
    recorder.rename("toml")
    recorder.save([ASK])
    assert saved(recorder).title == "toml"
    recorder.rename("reading toml")
    recorder.save([ASK, ANSWER])
    assert saved(recorder).title == "reading toml"
    with SessionStore() as store:
        assert store.find("reading toml").session_id == recorder.session_id


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("One line", "One line"),
        ("\n\n```\n  def f():\n", "def f():"),
        ("tab\there \x1b[31m", "tab here [31m"),
        ("word " * 30, "word word word word word word word word word word word\N{HORIZONTAL ELLIPSIS}"),
        ("x" * 80, "x" * 59 + "\N{HORIZONTAL ELLIPSIS}"),
        ("...", ""),
    ],
)
def test_title_is_the_first_line_that_says_something(text: str, title: str) -> None:
    assert title_of([SYSTEM, Message("user", text)]) == title
    assert len(title) <= 60


def test_file_and_folder_are_for_their_owner_alone(recorder: SessionRecorder) -> None:
    before = os.umask(0)
    try:
        recorder.save([ASK])
    finally:
        os.umask(before)
    folder = database_path().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("sessions.db", "sessions.db-shm", "sessions.db-wal"), 0o600)


def test_id_may_be_cut_while_it_is_unambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["ab000001", "ab000002", "cd000003"])
    monkeypatch.setattr("cg_local.sessions.store.secrets.token_hex", lambda _: next(ids))
    with SessionStore() as store:
        for text in ("one", "two", "three"):
            store.write(store.create().session_id, [Message("user", text)], revision=0)

        assert store.find("c").title == "three"
        assert store.find("AB000002").title == "two"
        with pytest.raises(SessionError, match="'ab' stands for 2 conversations; write more of the id: ab00000"):
            store.find("ab")
        for name in ("", "e", "%", "tw"):
            with pytest.raises(SessionError, match="no such conversation; `cg-local sessions list`"):
                store.find(name)


def test_removed_conversation_leaves_no_byte_in_the_file(recorder: SessionRecorder) -> None:
    recorder.save([Message("user", "my secret zebra"), Message("model", "the zebra sleeps", token_ids=(9,))])
    keep = recorder.session_id
    recorder.begin()
    recorder.save([Message("user", "other giraffe")])
    assert keep is not None
    with SessionStore() as store:
        assert store.remove([keep, "00000000"]) == Removal(1, is_overwritten=True)
        assert [hit.session_id for hit in store.search("giraffe")] == [recorder.session_id]
        assert store.search("zebra") == []
    recorder.close()
    content = b"".join(path.read_bytes() for path in database_path().parent.iterdir())
    assert b"giraffe" in content
    assert b"zebra" not in content


def test_what_was_replaced_leaves_no_byte_where_sqlite_keeps_them(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def careless(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA secure_delete = OFF")  # SQLite's own default, unless a system builds it otherwise
        return connection

    monkeypatch.setattr(sqlite3, "connect", careless)
    recorder.save([Message("user", "A title\n" + "my secret zebra " * 1000), Message("model", "it sleeps")])
    recorder.save([ASK])
    recorder.close()
    assert b"zebra" not in database_path().read_bytes()


def test_removal_says_when_another_process_keeps_the_log(recorder: SessionRecorder) -> None:
    recorder.save([Message("user", "my secret zebra")])
    other = sqlite3.connect(database_path(), isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM messages").fetchall()
    with SessionStore() as store:
        store.wait_for_locks(0.05)
        assert store.remove([recorder.session_id or ""]) == Removal(1, is_overwritten=False)
        other.close()
        assert store.remove([]) == Removal(0, is_overwritten=True)


# Several writers


def test_two_recorders_write_one_database_at_the_same_time(notices: list[str]) -> None:
    faults: list[str] = []

    def talk(name: str) -> None:
        recorder = SessionRecorder(faults.append, model=name)
        messages: list[Message] = []
        for turn in range(10):
            messages.append(Message("user", f"{name} {turn}"))
            recorder.save(messages)
            for piece in range(10):
                recorder.add(f"{piece} ")
            messages.append(Message("model", "0 1 2 3 4 5 6 7 8 9 "))
            recorder.save(messages)
        recorder.close()

    threads = [threading.Thread(target=talk, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert faults == []
    with SessionStore() as store:
        sessions = [store.load(each.session_id) for each in store.summaries()]
    assert sorted(session.model for session in sessions) == ["one", "two"]
    for session in sessions:
        assert [m.text for m in session.messages[::2]] == [f"{session.model} {turn}" for turn in range(10)]
        assert {m.text for m in session.messages[1::2]} == {"0 1 2 3 4 5 6 7 8 9 "}


def test_database_that_another_process_creates_meanwhile_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two statements of opening it, the other one may have finished."""
    rows = Database.rows
    for place in range(6):
        path, seen = database_path().with_name(f"{place}.db"), 0

        def racing(
            self: Database, *arguments: object, path: Path = path, place: int = place
        ) -> list[tuple[object, ...]]:
            nonlocal seen
            seen += 1
            if seen == place + 1:
                with monkeypatch.context() as patch:
                    patch.setattr(Database, "rows", rows)
                    SessionStore(path).close()
            return rows(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Database, "rows", racing)
            with SessionStore(path) as store:
                assert store.create().session_id


def test_conversation_that_two_continue_becomes_two(recorder: SessionRecorder, notices: list[str]) -> None:
    recorder.save([ASK, ANSWER])
    old = recorder.session_id
    other = SessionRecorder(notices.append)
    other.resume(saved(recorder))
    other.save([ASK, ANSWER, Message("user", "theirs")])
    other.close()

    recorder.save([ASK, ANSWER, Message("user", "ours")])
    recorder.add("a piece")

    assert notices == [
        f"conversation {old} was continued or removed elsewhere; this one is saved as {recorder.session_id}"
    ]
    assert [message.text for message in saved(recorder).messages] == [ASK.text, ANSWER.text, "ours", "a piece"]
    with SessionStore() as store:
        assert store.load(str(old)).messages[2].text == "theirs"


def test_answer_whose_conversation_another_process_changed_is_saved_at_its_end(
    recorder: SessionRecorder, notices: list[str]
) -> None:
    recorder.save([ASK])
    recorder.add("Use")
    other = SessionRecorder(notices.append)
    other.resume(saved(recorder))
    other.save([Message("user", "theirs")])
    other.close()

    recorder.add(" tomllib")
    assert notices == []
    recorder.save([ASK, ANSWER])
    assert len(notices) == 1
    assert saved(recorder).messages == (ASK, ANSWER)


def test_writer_of_an_old_revision_changes_nothing() -> None:
    with SessionStore() as store:
        session = store.create()
        store.write(session.session_id, [ASK], revision=0)
        with pytest.raises(RevisionError):
            store.write(session.session_id, [ANSWER], revision=0)
        assert store.load(session.session_id).messages == (ASK,)


KILLED = """
import os, signal, sys
from cg_local.conversation import Message
from cg_local.sessions import SessionRecorder
recorder = SessionRecorder(print, model="nano")
recorder.save([Message("user", "count")])
for number in range(500):
    recorder.add(f"{number} ", [number])
    print(number, flush=True)
    if number == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this platform")
@pytest.mark.parametrize("last", [0, 1, 137])
def test_killed_process_loses_nothing_that_was_added(last: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(last)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()[-1] == str(last)

    with SessionStore() as store:
        session = store.load(store.find("last").session_id)
    text = "".join(f"{number} " for number in range(last + 1))
    assert session.messages == (
        Message("user", "count"),
        Message("model", text, is_cut=True, token_ids=tuple(range(last + 1))),
    )
