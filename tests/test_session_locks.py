"""Several connections to the database of one process, and several processes: no lock and nothing written is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cg_local.conversation import Message
from cg_local.errors import SessionError
from cg_local.sessions import SessionRecorder, SessionStore
from cg_local.sessions.database import database_path

ASK = Message("user", "How do I read a TOML file?")
ANSWER = Message("model", "Use `tomllib`.")


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CG_LOCAL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def recorder() -> Iterator[SessionRecorder]:
    recorder = SessionRecorder(pytest.fail)
    yield recorder
    recorder.close()


def is_locked() -> bool:
    """Whether this process holds its lock on the database, as another process sees it."""
    program = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1], timeout=0).execute(sys.argv[2]).fetchone()[0])"
    command = [sys.executable, "-c", program, str(database_path()), "PRAGMA journal_mode = DELETE"]
    return "locked" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("is_read_only", [False, True])
def test_second_connection_of_a_process_leaves_the_lock_of_the_first(
    recorder: SessionRecorder, is_read_only: bool
) -> None:
    recorder.save([ASK])
    assert is_locked()
    with SessionStore(is_read_only=is_read_only) as store:
        store.summaries()
    assert is_locked()


def test_reader_waits_for_a_lock_and_reads_no_database_without_its_log(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.save([ASK])
    tried: list[str] = []
    fault = ""

    class Refusing:
        def __init__(self, place: str, **options: object) -> None:
            tried.append(place.partition("?")[2])

        def execute(self, statement: str) -> None:
            raise sqlite3.OperationalError(fault)

        def close(self) -> None:
            pass

    def ways(of_fault: str) -> list[str]:
        nonlocal fault
        fault = of_fault
        tried.clear()
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", Refusing)
            with pytest.raises(SessionError):
                SessionStore(is_read_only=True)
        return list(tried)

    assert ways("unable to open database file") == ["mode=ro"]  # its log holds the message
    recorder.close()
    assert ways("unable to open database file") == ["mode=ro", "immutable=1"]
    assert ways("database is locked") == ["mode=ro"]


OTHER = """
from cg_local.conversation import Message
from cg_local.errors import SessionError
from cg_local.sessions import SessionRecorder
recorder = SessionRecorder(print)
for text in ("other one", "other two"):
    recorder.begin()
    recorder.save([Message("user", text), Message("model", text * 1000)])
    recorder.close()
"""


def test_two_processes_lose_nothing_while_one_of_them_lists(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    with SessionStore() as store:
        assert len(store.summaries()) == 1
    done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert recorder.save([ASK, ANSWER])
    recorder.close()
    with SessionStore() as store:
        assert {each.title for each in store.summaries()} == {ASK.text, "other one", "other two"}
    connection = sqlite3.connect(database_path())
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
