"""Faults of the disk and of the database: one notice, the chat goes on, and nothing that was saved is lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cg_local.conversation import Message
from cg_local.errors import SessionBusyError, SessionError
from cg_local.sessions import SessionRecorder, SessionStore
from cg_local.sessions import database as database_module
from cg_local.sessions.database import Database, database_path

ASK = Message("user", "How do I read a TOML file?")
ANSWER = Message("model", "Use `tomllib`.")
MORE = Message("user", "And write one?")


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


def messages_of(recorder: SessionRecorder) -> tuple[Message, ...]:
    assert recorder.session_id is not None
    with SessionStore() as store:
        return store.load(recorder.session_id).messages


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that lets statements that begin in one way fail from now on; None lets them work again."""
    execute = Database.execute
    rules: dict[str, Exception] = {}
    is_once = [False]

    def guarded(self: Database, statement: str, values: tuple[object, ...] = ()) -> Any:
        for start, error in list(rules.items()):
            if statement.strip().startswith(start):
                if is_once[0]:
                    rules.clear()
                with self.explained("cannot be written"):
                    raise error
        return execute(self, statement, values)

    def rule(start: str, error: Exception | None, *, once: bool = False) -> None:
        rules.clear()
        is_once[0] = once
        if error is not None:
            rules[start] = error

    monkeypatch.setattr(Database, "execute", guarded)
    return rule


FULL = sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    "statement", ["BEGIN IMMEDIATE", "INSERT INTO messages", "UPDATE sessions", "DELETE", "COMMIT"]
)
def test_full_disk_is_one_notice_and_made_good_when_there_is_room(
    recorder: SessionRecorder, notices: list[str], failing: Callable[..., None], statement: str
) -> None:
    recorder.save([ASK])
    failing(statement, FULL)
    assert not recorder.save([ASK, ANSWER])
    assert not recorder.save([ASK, ANSWER, MORE])
    recorder.add("first ")
    assert recorder.is_failing
    assert notices == [
        f"this conversation is not being saved: {database_path()}: cannot be written (database or disk is full); make "
        "room on the disk"
    ]
    assert messages_of(recorder) == (ASK,)

    failing("", None)
    recorder.add("second")
    assert recorder.save([ASK, ANSWER, MORE, Message("model", "first second")])
    assert notices[1:] == ["the conversation is being saved again"]
    assert [message.text for message in messages_of(recorder)] == [ASK.text, ANSWER.text, MORE.text, "first second"]


def test_piece_that_cannot_be_written_is_one_notice(
    recorder: SessionRecorder, notices: list[str], failing: Callable[..., None]
) -> None:
    recorder.save([ASK])
    recorder.add("Use ")
    failing("INSERT INTO pieces", FULL)
    for piece in ("tom", "llib"):
        recorder.add(piece)
    assert len(notices) == 1
    failing("", None)
    assert recorder.save([ASK, ANSWER])
    assert messages_of(recorder) == (ASK, ANSWER)


def test_piece_that_meets_a_lock_goes_with_the_next_one(
    recorder: SessionRecorder, notices: list[str], failing: Callable[..., None]
) -> None:
    recorder.save([ASK])
    failing("BEGIN IMMEDIATE", sqlite3.OperationalError("database is locked"))
    recorder.add("Use ")
    recorder.add("tom")
    failing("", None)
    recorder.add("llib")
    assert notices == []
    assert messages_of(recorder)[1].text == "Use tomllib"


def test_database_that_another_process_locks_for_long_is_a_notice(
    recorder: SessionRecorder, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.save([ASK])
    monkeypatch.setattr("cg_local.sessions.recorder.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(database_path(), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder.add("Use")
    assert not recorder.save([ASK, ANSWER])
    assert len(notices) == 1
    assert "another process has been writing for long" in notices[0]
    other.execute("ROLLBACK")
    other.close()
    assert recorder.save([ASK, ANSWER])
    assert messages_of(recorder) == (ASK, ANSWER)


def test_lock_of_another_process_while_a_store_opens_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    SessionStore().close()
    other = sqlite3.connect(database_path(), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with SessionStore() as store, pytest.raises(SessionBusyError):
        store.create()
    other.close()


def test_disk_error_at_the_first_message_is_a_notice(
    recorder: SessionRecorder, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert not recorder.save([ASK])
    assert notices == [
        f"this conversation is not being saved: {database_path()}: cannot be opened (Read-only file system); make the "
        "folder writable, or set CG_LOCAL_DATA"
    ]
    assert recorder.save([ASK, ANSWER])
    assert messages_of(recorder) == (ASK, ANSWER)


def test_file_in_the_place_of_the_folder_is_a_notice(
    recorder: SessionRecorder, notices: list[str], data_folder: Path
) -> None:
    data_folder.write_text("mine")
    assert not recorder.save([ASK])
    assert not recorder.save([ASK, ANSWER])
    assert len(notices) == 1
    assert data_folder.read_text() == "mine"


# Damage


def damage(kind: str) -> None:
    path = database_path()
    if kind == "text":
        path.write_bytes(b"this is no database " * 1000)
    elif kind == "empty header":
        path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:])
    else:  # the schema still reads, the tables do not
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


@pytest.mark.parametrize("kind", ["text", "empty header", "tables"])
def test_damaged_database_is_kept_aside_and_a_new_one_begun(
    recorder: SessionRecorder, notices: list[str], kind: str
) -> None:
    recorder.save([ASK, ANSWER])
    recorder.close()
    damage(kind)
    broken = database_path().read_bytes()

    assert recorder.save([ASK, ANSWER, MORE])
    recorder.add("Use ")

    (aside,) = database_path().parent.glob("sessions.db.damaged-*[0-9]")
    assert aside.read_bytes() == broken
    assert notices == [f"{database_path()} was damaged: kept as {aside.name}; saved conversations begin anew"]
    assert [message.text for message in messages_of(recorder)] == [ASK.text, ANSWER.text, MORE.text, "Use "]


def test_damage_while_an_answer_is_written_loses_none_of_it(
    recorder: SessionRecorder, notices: list[str], failing: Callable[..., None]
) -> None:
    recorder.save([ASK, ANSWER, MORE])
    recorder.add("tomlkit ")
    failing("INSERT INTO pieces", sqlite3.DatabaseError("database disk image is malformed"), once=True)
    recorder.add("writes ")
    assert messages_of(recorder)[-1].text == "tomlkit writes "
    recorder.add("it")
    assert any("damaged" in notice for notice in notices)
    assert recorder.save([ASK, ANSWER, MORE, Message("model", "tomlkit writes it")])
    assert [m.text for m in messages_of(recorder)] == [ASK.text, ANSWER.text, MORE.text, "tomlkit writes it"]


def test_two_damaged_databases_in_one_second_are_both_kept(recorder: SessionRecorder, notices: list[str]) -> None:
    for text in ("one", "two"):
        recorder.save([ASK, Message("model", text)])
        recorder.close()
        damage("text")
    assert recorder.save([ASK])
    assert len(list(database_path().parent.glob("sessions.db.damaged-*[0-9]"))) == 2


def test_reading_a_damaged_database_says_so_and_changes_nothing(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    recorder.close()
    damage("text")
    with pytest.raises(SessionError, match="not a database; `cg-local chat` moves it aside"):
        SessionStore(is_read_only=True)
    assert [path.name for path in database_path().parent.iterdir()] == ["sessions.db"]


def test_database_that_was_removed_meanwhile_is_written_anew(recorder: SessionRecorder, notices: list[str]) -> None:
    recorder.save([ASK, ANSWER])
    for path in database_path().parent.iterdir():
        path.unlink()
    recorder.save([ASK, ANSWER, MORE])
    assert notices == [f"{database_path()}: removed or replaced meanwhile; the conversation is saved there anew"]
    assert messages_of(recorder) == (ASK, ANSWER, MORE)


def test_name_given_after_the_database_was_removed_is_saved_with_everything(
    recorder: SessionRecorder, notices: list[str]
) -> None:
    recorder.save([ASK, ANSWER])
    for path in database_path().parent.iterdir():
        path.unlink()
    assert recorder.rename("my talk")
    assert len(notices) == 1
    assert messages_of(recorder) == (ASK, ANSWER)
    with SessionStore() as store:
        assert store.find("my talk").session_id == recorder.session_id


@pytest.mark.parametrize("named", [True, False])
def test_conversation_that_was_removed_elsewhere_is_saved_anew_by_name_or_without(
    recorder: SessionRecorder, notices: list[str], named: bool
) -> None:
    recorder.save([ASK, ANSWER])
    old = recorder.session_id
    assert old is not None
    with SessionStore() as store:
        store.remove([old])
    assert recorder.rename("my talk") if named else recorder.save([ASK, ANSWER])
    assert recorder.session_id != old
    assert messages_of(recorder) == (ASK, ANSWER)
    assert notices == [
        f"conversation {old} was continued or removed elsewhere; this one is saved as {recorder.session_id}"
    ]
    with SessionStore() as store:
        assert store.find("last").title == ("my talk" if named else ASK.text)


def test_resumed_conversation_is_saved_anew_with_its_own_text_alone(
    recorder: SessionRecorder, notices: list[str]
) -> None:
    recorder.save([MORE])
    recorder.begin()
    recorder.save([ASK, ANSWER])
    with SessionStore() as store:
        other = store.load(store.find(MORE.text).session_id)
    recorder.resume(other)
    with SessionStore() as store:
        store.remove([other.session_id])
    assert recorder.rename("my talk")
    assert messages_of(recorder) == (MORE,)


def test_half_a_character_is_one_notice_and_the_rest_is_saved(recorder: SessionRecorder, notices: list[str]) -> None:
    recorder.save([ASK])
    assert not recorder.save([ASK, Message("model", "half \ud800")])
    assert not recorder.rename("half \ud800")
    assert len(notices) == 1
    assert notices[0].endswith("cannot be written: a text has half a character at place 6")
    assert messages_of(recorder) == (ASK,)
    assert recorder.rename("whole")
    assert recorder.save([ASK, ANSWER])
    assert messages_of(recorder) == (ASK, ANSWER)


# Disks without a write-ahead log


def test_without_a_log_pieces_are_collected_for_a_second(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "_use_log", lambda self: False)
    now = [100.0]
    monkeypatch.setattr("cg_local.sessions.recorder.time.monotonic", lambda: now[0])
    recorder.save([ASK])
    for number in range(6):
        recorder.add(f"{number} ")
        now[0] += 0.4
    # Written at 0, 1.2 and (not yet) 2.4 seconds.
    assert messages_of(recorder)[1].text == "0 1 2 3 "
    recorder.save([ASK, ANSWER])
    assert messages_of(recorder) == (ASK, ANSWER)


def test_long_log_is_moved_into_the_database_at_the_end_of_a_turn(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    log = Path(f"{database_path()}-wal")
    recorder.add("x" * (2 * database_module.LOG_BYTES))
    assert log.stat().st_size > database_module.LOG_BYTES
    recorder.save([ASK, ANSWER])
    assert log.stat().st_size < database_module.LOG_BYTES


def test_durable_writes_and_no_others_wait_for_the_disk(recorder: SessionRecorder) -> None:
    seen: list[tuple[str, int]] = []
    execute = Database.execute

    def watching(self: Database, statement: str, values: tuple[object, ...] = ()) -> Any:
        if statement == "COMMIT":
            seen.append(("synchronous", self.rows("PRAGMA synchronous")[0][0]))
        return execute(self, statement, values)

    with pytest.MonkeyPatch.context() as patch:
        recorder.save([ASK])
        patch.setattr(Database, "execute", watching)
        recorder.add("piece")
        recorder.save([ASK, ANSWER])
        recorder.save([ASK, ANSWER, MORE])
    normal, full = 1, 2
    assert [level for _, level in seen] == [normal, normal, full, normal]
