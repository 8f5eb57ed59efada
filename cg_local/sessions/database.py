"""The database file of saved conversations: where it lies, its version, its locks, what its errors mean.

This file owns connections and transactions. It knows no table but through MIGRATIONS. Invariants: a file that another
program or a newer cg-local wrote is refused and never changed, and a damaged one is moved aside, never removed; SQLite
alone opens a database that is there, or its locks would be lost.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cg_local.errors import SessionBusyError, SessionDamageError, SessionError
from cg_local.model_store import data_folder

BUSY_SECONDS = 5.0
"""How long a statement waits for the locks of other processes."""
APPLICATION_ID = 0x43474C53  # "CGLS": what a SQLite file of ours says that it is
LOG_BYTES = 1 << 20
"""The write-ahead log is moved into the database when it has grown beyond this."""

# Each entry leads from the version of its place to the next one; their number is the current version.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        settings TEXT NOT NULL DEFAULT '{}',
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        revision INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX sessions_by_time ON sessions (updated_at);
    CREATE TABLE messages (
        message_id INTEGER PRIMARY KEY,
        number INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
        position INTEGER NOT NULL,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        is_cut INTEGER NOT NULL,
        token_ids BLOB NOT NULL,
        created_at REAL NOT NULL,
        UNIQUE (number, position)
    );
    CREATE TABLE pieces (
        piece INTEGER PRIMARY KEY,
        message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
        text TEXT NOT NULL,
        token_ids BLOB NOT NULL
    );
    CREATE INDEX pieces_by_message ON pieces (message_id);
    CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
)


def database_path() -> Path:
    """Return where the database lies, or will lie."""
    return data_folder() / "sessions" / "sessions.db"


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one that has its name later; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def move_aside(path: Path) -> Path:
    """Rename a damaged database, with its write-ahead log, so that it can be looked at and a new one begun.

    Returns:
        Its new path.

    Raises:
        SessionError: the folder cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    try:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    except OSError as cause:
        raise SessionError(
            f"{path}: damaged, and it cannot be moved aside ({cause.strerror}); move it away yourself"
        ) from cause
    return aside


class Database:
    """A connection with the current tables; for one thread at a time.

    Attributes:
        path: of the file.
        is_logged: writes go to a write-ahead log, so that they are quick; false on disks that cannot share memory.

    Raises:
        SessionError: the folder or the file cannot be written, or a newer cg-local or another program wrote it.
        SessionDamageError: the file is damaged.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        with self.explained("cannot be opened"):
            self._connection = _read_only(path) if is_read_only else _writable(path)
        try:
            with self.explained("cannot be opened"):
                self._check_owner(is_read_only)
                self.is_logged = not is_read_only and self._use_log()
                if not is_read_only:
                    self._migrate()
        except BaseException:
            self._connection.close()
            raise
        self.identity = identity_of(path)

    def close(self) -> None:
        """Close; SQLite then moves what is in the write-ahead log into the database."""
        self._connection.close()

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with self.explained("cannot be read"):
            return self._connection.execute(statement, values).fetchall()

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run a statement."""
        with self.explained("cannot be written"):
            return self._connection.execute(statement, values)

    @contextlib.contextmanager
    def transaction(self, *, is_durable: bool) -> Iterator[None]:
        """Make the statements within it one change.

        Args:
            is_durable: wait at the end until the disk has it, and all that was written before it.
        """
        self.execute(f"PRAGMA synchronous = {'FULL' if is_durable or not self.is_logged else 'NORMAL'}")
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # After some errors, a full disk for one, SQLite has taken it back already.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        if is_durable:
            self._shorten_log()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries within it see the same state."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def wait_for_locks(self, seconds: float) -> None:
        """Set how long statements wait for other processes from now on."""
        self.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")

    @contextlib.contextmanager
    def explained(self, fault: str) -> Iterator[None]:
        """Turn errors of SQLite and of the system into ours."""
        try:
            yield
        except sqlite3.Error as cause:
            raise _error(self.path, fault, cause) from cause
        except UnicodeEncodeError as cause:
            raise SessionError(
                f"{self.path}: {fault}: a text has half a character at place {cause.start + 1}"
            ) from cause
        except OSError as cause:
            raise SessionError(
                f"{self.path}: {fault} ({cause.strerror}); make the folder writable, or set CG_LOCAL_DATA"
            ) from cause

    def _check_owner(self, is_read_only: bool) -> None:
        # In this order: another process may create the tables meanwhile, and commits the rest together with them.
        num_tables = self.rows("SELECT count(*) FROM sqlite_master")[0][0]
        owner = self.rows("PRAGMA application_id")[0][0]
        version = self.rows("PRAGMA user_version")[0][0]
        if not num_tables and is_read_only:  # another process creates it just now
            raise _nothing_saved(self.path)
        if owner != APPLICATION_ID and num_tables:
            raise SessionError(f"{self.path}: not a database of cg-local; move it away, or set CG_LOCAL_DATA")
        if version > len(MIGRATIONS):
            raise SessionError(
                f"{self.path}: version {version}, this cg-local knows {len(MIGRATIONS)}; it was written by a newer "
                "cg-local: run `pip install --upgrade cg-local`"
            )

    def _use_log(self) -> bool:
        if self.rows("PRAGMA journal_mode")[0][0] != "wal":
            self.rows("PRAGMA journal_mode = WAL")
        # Moved at the end of a turn instead, so that no piece of an answer waits for the disk.
        self.execute("PRAGMA wal_autocheckpoint = 0")
        return bool(self.rows("PRAGMA journal_mode")[0][0] == "wal")

    def _migrate(self) -> None:
        self.execute("PRAGMA foreign_keys = ON")
        # What is undone, replaced or removed is overwritten: many systems build SQLite to leave it in free pages.
        self.execute("PRAGMA secure_delete = ON")
        # macOS keeps written blocks in the drive's cache unless it is asked to empty it; no-op elsewhere.
        self.execute("PRAGMA fullfsync = ON")
        if self._version() == len(MIGRATIONS):
            return
        with self.transaction(is_durable=True):
            # Read again: another process may have come first.
            for number in range(self._version(), len(MIGRATIONS)):
                for statement in MIGRATIONS[number].split(";"):
                    self.execute(statement)
            self.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            self.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _version(self) -> int:
        return int(self.rows("PRAGMA user_version")[0][0])

    def _shorten_log(self) -> None:
        log = Path(f"{self.path}-wal")
        with contextlib.suppress(OSError, sqlite3.OperationalError):
            if log.stat().st_size > LOG_BYTES:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _writable(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(path.parent, 0o700)
    # Created here, because SQLite would leave the mode to the umask; it gives its log the mode of the database.
    # Only a file that is not there yet: POSIX drops all locks of a process on a file when any descriptor of it is
    # closed, those of its other connections too (https://sqlite.org/howtocorrupt.html, 2.2). So nothing else in a
    # process may open the database.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    os.chmod(path, 0o600)
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _read_only(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise _nothing_saved(path)
    place = path.resolve().as_uri()
    for parameters in ("mode=ro", "immutable=1"):  # a folder that cannot be written takes no shared memory of a log
        connection = sqlite3.connect(
            f"{place}?{parameters}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            connection.close()
            if parameters == "immutable=1" or not _may_be_immutable(path, str(error)):
                raise
        else:
            return connection
    raise AssertionError("one of the two returned or raised")


def _may_be_immutable(path: Path, fault: str) -> bool:
    """Whether a database may be read without locks and without its log: nobody can write it, and no log has more."""
    log = Path(f"{path.resolve()}-wal")
    return ("unable to open" in fault or "readonly" in fault) and not (log.exists() and log.stat().st_size)


def _nothing_saved(path: Path) -> SessionError:
    return SessionError(f"{path}: no conversation is saved yet; `cg-local chat` begins one")


def _error(path: Path, fault: str, cause: sqlite3.Error) -> SessionError:
    # Python 3.10 gives no error codes; these are SQLite's texts of BUSY, CORRUPT, NOTADB and FULL.
    text = str(cause)
    if "locked" in text:
        return SessionBusyError(f"{path}: another process has been writing for long; try again")
    if "malformed" in text or "not a database" in text:
        return SessionDamageError(f"{path}: {text}; `cg-local chat` moves it aside and begins a new one")
    remedy = "make room on the disk" if "full" in text else "make the folder writable, or set CG_LOCAL_DATA"
    return SessionError(f"{path}: {fault} ({text}); {remedy}")
