"""Search in saved conversations, with the index and without, and databases of older and newer versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cg_local.conversation import Message
from cg_local.errors import SessionError
from cg_local.sessions import SessionRecorder, SessionStore
from cg_local.sessions import database as database_module
from cg_local.sessions import search as search_module
from cg_local.sessions.database import database_path

ASK = Message("user", "How do I read a TOML file?")
ANSWER = Message("model", "Use `tomllib`.", token_ids=(7, 300_000, 5))


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


# Search


@pytest.fixture(params=["index", "no index"])
def has_index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether SQLite has FTS5; the results must be the same."""
    if request.param == "no index":
        monkeypatch.setattr(search_module.SearchIndex, "_make_ready", lambda self: False)
        monkeypatch.setattr(search_module.SearchIndex, "_is_ready", lambda self: False)
    return request.param == "index"


@pytest.mark.parametrize(
    ("query", "roles"),
    [
        ("tomllib", ["model"]),
        ("TOML", ["user", "model"]),
        ("oml", ["user", "model"]),
        ("toml file", ["user"]),
        ('"a toml"', ["user"]),
        ("do I", ["user"]),
        ("q\u00fcer", ["system"]),
        ('un"quoted', []),
        ("nothing", []),
        ("", []),
        ("%", []),
    ],
)
def test_search_finds_messages_that_hold_every_word(
    has_index: bool, recorder: SessionRecorder, query: str, roles: list[str]
) -> None:
    recorder.save([Message("system", "Q\u00dcERY"), ASK, ANSWER])
    with SessionStore(is_read_only=True) as store:
        assert [hit.role for hit in store.search(query)] == roles


@pytest.mark.parametrize(
    "query", ["Stra\u00dfe", "strasse", "STRASSE", "\ufb01le", "file", "\u0130zmir", "\u212aelvin", "kel"]
)
def test_search_folds_case_as_unicode_does_with_the_index_too(
    has_index: bool, recorder: SessionRecorder, query: str
) -> None:
    texts = ["Stra\u00dfe", "STRASSE", "\ufb01le", "FILE", "\u0130ZMIR", "kelvin", "\u212aELVIN"]
    recorder.save([Message("model" if number % 2 else "user", text) for number, text in enumerate(texts)])
    recorder.rename("a name")
    with SessionStore(is_read_only=True) as store:
        found = {hit.position for hit in store.search(query)}
    expected = {place for place, text in enumerate(texts) if query.casefold() in text.casefold()}
    assert expected
    assert found == expected


def test_index_reads_the_texts_whose_folded_case_it_does_not_know() -> None:
    folded = {chr(code) for code in range(128, 0x110000) if any(letter.isascii() for letter in chr(code).casefold())}
    assert folded == set(search_module.UNFOLDED)


def test_search_finds_pieces_titles_and_what_was_replaced_no_more(has_index: bool, recorder: SessionRecorder) -> None:
    recorder.rename("my favourite")
    recorder.save([ASK, Message("model", "an octopus")])
    recorder.save([ASK])
    recorder.add("a walrus ")
    recorder.add("appears")
    with SessionStore(is_read_only=True) as store:
        assert store.search("octopus") == []
        (hit,) = store.search("walrus appears")
        assert (hit.role, hit.position, hit.snippet) == ("model", 1, "a walrus appears")
        assert [hit.role for hit in store.search("favourite")] == ["title"]


def test_snippet_is_one_line_around_the_word(recorder: SessionRecorder) -> None:
    recorder.save([Message("user", "a\n" * 200 + "needle\n" + "b\n" * 200)])
    with SessionStore() as store:
        (hit,) = store.search("needle")
    assert "needle" in hit.snippet
    assert len(hit.snippet) <= search_module.SNIPPET_CHARACTERS + 2
    assert "\n" not in hit.snippet


def test_index_takes_up_what_an_sqlite_without_it_wrote(recorder: SessionRecorder) -> None:
    recorder.save([ASK])
    recorder.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module.SearchIndex, "_make_ready", lambda self: False)
        recorder.save([ASK, Message("model", "an octopus")])
        recorder.close()
    with SessionStore() as store:
        assert [hit.role for hit in store.search("octopus")] == ["model"]
        store.remove([store.find("last").session_id])
        assert store.search("octopus") == []


# Versions


def test_database_of_an_older_version_is_brought_up_to_date(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.save([ASK, ANSWER])
    recorder.close()
    newer = (*database_module.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")
    monkeypatch.setattr(database_module, "MIGRATIONS", newer)

    with SessionStore() as store:
        assert store.load(store.find("last").session_id).messages == (ASK, ANSWER)
    connection = sqlite3.connect(database_path())
    assert connection.execute("SELECT colour FROM sessions").fetchall() == [("blue",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
    connection.close()


def test_failed_migration_changes_nothing(recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.save([ASK])
    recorder.close()
    broken = (*database_module.MIGRATIONS, "ALTER TABLE marks ADD COLUMN x; ALTER TABLE nowhere ADD COLUMN y")
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", broken)
        with pytest.raises(SessionError, match="no such table: nowhere"):
            SessionStore()
    with SessionStore() as store:
        assert store.find("last").title == ASK.text
    connection = sqlite3.connect(database_path())
    assert [row[1] for row in connection.execute("PRAGMA table_info(marks)")] == ["name", "value"]
    connection.close()


def test_database_of_a_newer_version_is_refused_and_unchanged(
    recorder: SessionRecorder, notices: list[str], data_folder: Path
) -> None:
    recorder.save([ASK])
    recorder.close()
    connection = sqlite3.connect(database_path())
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(SessionError, match=r"version 99, this cg-local knows 1; .* `pip install --upgrade cg-local`"):
        SessionStore()
    assert not recorder.save([ASK, ANSWER])
    assert len(notices) == 1
    assert notices[0].startswith("this conversation is not being saved: ")


def test_database_of_another_program_is_refused_and_unchanged() -> None:
    database_path().parent.mkdir(parents=True)
    connection = sqlite3.connect(database_path())
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = database_path().read_bytes()

    with pytest.raises(SessionError, match="not a database of cg-local; move it away"):
        SessionStore()
    assert database_path().read_bytes() == before
