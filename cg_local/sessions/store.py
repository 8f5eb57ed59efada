"""Saved conversations: what is written, read, found and removed.

This file owns every statement on the tables of conversations and messages. It does not decide when to save
(`recorder`) and renders nothing. Invariant: a conversation changes in one transaction at a time; after a kill it reads
as its last complete messages and the pieces that were written of the answer under way, marked as cut.

What is safe: after a killed process everything that was written, each piece of an answer included, because every write
has reached the operating system when the call returns. After a power cut everything up to the last write that was
durable, because only those wait for the disk (write-ahead log; synchronous NORMAL, FULL where durable).
"""

from __future__ import annotations

import json
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cg_local.conversation import Message
from cg_local.errors import RevisionError, SessionError
from cg_local.sessions.database import Database, database_path, identity_of
from cg_local.sessions.search import SearchHit, SearchIndex, Terms

MAX_TITLE_CHARACTERS = 60
LAST = "last"
"""Stands for the conversation that was written last wherever a conversation is named."""

_SUMMARY = """
    SELECT session_id, title, model, created_at, updated_at,
        (SELECT count(*) FROM messages WHERE messages.number = sessions.number AND role != 'system') FROM sessions
"""


@dataclass(frozen=True)
class SessionSummary:
    """What a list shows of a conversation.

    Attributes:
        session_id: eight hexadecimal digits; the first few will do wherever they are unambiguous.
        title: first line of the first question, or the name that the user gave.
        model: as asked for when the conversation began.
        created_at, updated_at: seconds since 1970.
        num_messages: questions and answers.
    """

    session_id: str
    title: str
    model: str
    created_at: float
    updated_at: float
    num_messages: int


@dataclass(frozen=True)
class SavedSession(SessionSummary):
    """A conversation as it was saved.

    Attributes:
        messages: a system message first, then oldest first; an answer whose process was killed is the last one, marked
            as cut.
        settings: what the chat keeps beside the text; JSON values.
        revision: counts the writes; a writer says which one it read.
    """

    messages: tuple[Message, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    revision: int = 0


@dataclass(frozen=True)
class Removal:
    """What a removal did.

    Attributes:
        num_sessions: how many conversations are gone.
        is_overwritten: their bytes are gone too; if not, a process that is reading keeps them in the write-ahead log,
            until a process closes the database or removes something again.
    """

    num_sessions: int
    is_overwritten: bool


def title_of(messages: Sequence[Message]) -> str:
    """Return the first line with a letter or digit of the first question, cut at a word; "" without a question."""
    text = next((message.text for message in messages if message.role == "user"), "")
    lines = ("".join(letter if letter.isprintable() else " " for letter in line) for line in text.splitlines())
    line = next((" ".join(line.split()) for line in lines if any(map(str.isalnum, line))), "")
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    head = line[: MAX_TITLE_CHARACTERS - 1]
    return (head.rsplit(" ", 1)[0] if " " in head[MAX_TITLE_CHARACTERS // 2 :] else head) + "\N{HORIZONTAL ELLIPSIS}"


class SessionStore:
    """The database of saved conversations; for one thread at a time.

    Args:
        path: of the database; None: `database_path()`. Created when it is not there.
        is_read_only: open it for reading, which a read-only disk allows too; nothing is created.

    Raises:
        SessionError: the folder or the file cannot be written, or a newer cg-local or another program wrote it.
        SessionDamageError: the file is damaged; `database.move_aside` keeps it and makes room for a new one.
    """

    def __init__(self, path: Path | None = None, *, is_read_only: bool = False) -> None:
        self.path = path or database_path()
        self._database = Database(self.path, is_read_only=is_read_only)
        try:
            self._index = SearchIndex(self._database, is_read_only=is_read_only)
        except BaseException:
            self._database.close()
            raise
        # Without a write-ahead log every write waits for the disk.
        self.has_quick_writes = self._database.is_logged

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> SessionStore:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def is_in_place(self) -> bool:
        """Whether the file that is open is still the one at `path`; false when it was removed, moved or replaced."""
        return identity_of(self.path) == self._database.identity

    def wait_for_locks(self, seconds: float) -> None:
        """Set how long statements wait for other processes from now on; BUSY_SECONDS at first."""
        self._database.wait_for_locks(seconds)

    # Writing

    def create(self, *, model: str = "", settings: Mapping[str, object] | None = None) -> SavedSession:
        """Begin a conversation without messages."""
        now = time.time()
        with self._database.transaction(is_durable=False):
            while True:
                session_id = secrets.token_hex(4)
                cursor = self._database.execute(
                    "INSERT OR IGNORE INTO sessions (session_id, model, settings, created_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (session_id, model, json.dumps(dict(settings or {})), now, now),
                )
                if cursor.rowcount:
                    return SavedSession(session_id, "", model, now, now, 0, settings=dict(settings or {}))

    def write(
        self,
        session_id: str,
        messages: Sequence[Message],
        *,
        first: int = 0,
        revision: int,
        is_durable: bool = True,
    ) -> int:
        """Replace the messages from a place on, and whatever was written of an answer under way.

        Args:
            session_id: whole.
            messages: all of the conversation, a system message first.
            first: those before this place are saved already and stay as they are.
            revision: the conversation's, as read or as the last write returned it.
            is_durable: wait until the disk has it.

        Returns:
            The new revision.

        Raises:
            RevisionError: the conversation is gone, or another process wrote it meanwhile; nothing has changed.
        """
        now = time.time()
        with self._database.transaction(is_durable=is_durable):
            number, title = self._claim(session_id, revision)
            self._delete_messages("number = ? AND position >= ?", (number, first))
            for position in range(first, len(messages)):
                self._insert(number, position, messages[position], now)
            self._database.execute(
                "UPDATE sessions SET title = ?, updated_at = ? WHERE number = ?",
                (title or title_of(messages), now, number),
            )
        return revision + 1

    def begin_answer(self, session_id: str, position: int, *, revision: int) -> int:
        """Make room for an answer whose pieces will follow.

        Returns:
            What `add_piece` takes. The revision has grown by 1.
        """
        with self._database.transaction(is_durable=False):
            number, _ = self._claim(session_id, revision)
            self._delete_messages("number = ? AND position >= ?", (number, position))
            return self._insert(number, position, Message("model", "", is_cut=True), time.time())

    def add_piece(self, message_id: int, text: str, token_ids: Sequence[int] = ()) -> None:
        """Save a piece of the answer under way.

        Raises:
            RevisionError: the answer is gone, because another process wrote the conversation.
        """
        with self._database.transaction(is_durable=False):
            cursor = self._database.execute(
                "INSERT INTO pieces (message_id, text, token_ids) "
                "SELECT message_id, ?, ? FROM messages WHERE message_id = ?",
                (text, _packed(token_ids), message_id),
            )
            if not cursor.rowcount:
                raise RevisionError("the conversation was continued or removed by another process")

    def rename(self, session_id: str, title: str) -> None:
        """Give a conversation a name, which later writes keep.

        Raises:
            RevisionError: it is gone, because another process removed it.
        """
        with self._database.transaction(is_durable=True):
            cursor = self._database.execute("UPDATE sessions SET title = ? WHERE session_id = ?", (title, session_id))
            if not cursor.rowcount:
                raise RevisionError(f"conversation {session_id} was removed by another process")

    def holds(self, session_id: str) -> bool:
        """Whether there is a conversation of this id, whole."""
        return bool(self._database.rows("SELECT 1 FROM sessions WHERE session_id = ?", (session_id,)))

    def remove(self, session_ids: Sequence[str]) -> Removal:
        """Remove conversations for good: their bytes in the file are overwritten.

        Returns:
            How many there were, and whether the write-ahead log could be emptied of them too.
        """
        removed = 0
        with self._database.transaction(is_durable=True):
            for session_id in session_ids:
                where = "number IN (SELECT number FROM sessions WHERE session_id = ?)"
                self._delete_messages(where, (session_id,))
                removed += self._database.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,)).rowcount
            self._index.tidy()
        is_busy = self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
        return Removal(removed, is_overwritten=not is_busy)

    # Reading

    def summaries(self, limit: int | None = None) -> list[SessionSummary]:
        """Return the conversations that have messages, the one written last first."""
        rows = self._database.rows(
            f"{_SUMMARY} WHERE EXISTS (SELECT 1 FROM messages WHERE messages.number = sessions.number) "
            "ORDER BY updated_at DESC, number DESC LIMIT ?",
            (-1 if limit is None else limit,),
        )
        return [SessionSummary(*row) for row in rows]

    def find(self, name: str, shown_by: str = "`cg-local sessions list`") -> SessionSummary:
        """Find a conversation.

        Args:
            name: "last", the first digits of an id, or a whole title.
            shown_by: what lists conversations where the name was typed, for the message.

        Raises:
            SessionError: there is none, or several.
        """
        found = self.summaries(1) if name == LAST else self._named(name)
        if len(found) == 1:
            return found[0]
        if not found:
            raise SessionError(
                f"{name!r}: no such conversation; {shown_by} shows them"
                if name != LAST
                else "no conversation is saved yet; `cg-local chat` begins one"
            )
        ids = ", ".join(f"{each.session_id} ({each.title})" for each in found[:5])
        raise SessionError(f"{name!r} stands for {len(found)} conversations; write more of the id: {ids}")

    def load(self, session_id: str) -> SavedSession:
        """Read a conversation.

        Args:
            session_id: whole.

        Raises:
            SessionError: there is none of that id.
        """
        with self._database.snapshot():
            rows = self._database.rows(f"{_SUMMARY} WHERE session_id = ?", (session_id,))
            if not rows:
                raise SessionError(f"{session_id!r}: no such conversation; `cg-local sessions list` shows them")
            number, settings, revision = self._database.rows(
                "SELECT number, settings, revision FROM sessions WHERE session_id = ?", (session_id,)
            )[0]
            messages = self._messages(number)
        summary = vars(SessionSummary(*rows[0]))
        return SavedSession(**summary, messages=messages, settings=json.loads(settings), revision=revision)

    def search(self, query: str, limit: int = 50) -> list[SearchHit]:
        """Find the messages that hold every word of a query, whatever their case; the newest conversations first.

        Args:
            query: words, parts of words, or phrases in double quotes.
            limit: of the result.
        """
        with self._database.snapshot():
            return self._index.search(Terms.parse(query), limit)

    def _named(self, name: str) -> list[SessionSummary]:
        exact = self._database.rows(f"{_SUMMARY} WHERE session_id = ? OR title = ?", (name.lower(), name))
        is_prefix = name and all(letter in "0123456789abcdef" for letter in name.lower())
        if not exact and is_prefix:
            pattern = (f"{name.lower()}%",)
            exact = self._database.rows(f"{_SUMMARY} WHERE session_id LIKE ? ORDER BY updated_at DESC", pattern)
        return [SessionSummary(*row) for row in exact]

    def _messages(self, number: int) -> tuple[Message, ...]:
        rows = self._database.rows(
            "SELECT role, text, is_cut, token_ids, message_id FROM messages WHERE number = ? ORDER BY position",
            (number,),
        )
        messages = []
        for role, text, is_cut, token_ids, message_id in rows:
            pieces = self._database.rows(
                "SELECT text, token_ids FROM pieces WHERE message_id = ? ORDER BY piece", (message_id,)
            )
            text += "".join(piece for piece, _ in pieces)
            token_ids += b"".join(packed for _, packed in pieces)
            messages.append(Message(role, text, bool(is_cut), _unpacked(token_ids)))
        return tuple(messages)

    def _claim(self, session_id: str, revision: int) -> tuple[int, str]:
        """Count a write, if nobody else wrote since `revision`; returns the row's number and the title."""
        cursor = self._database.execute(
            "UPDATE sessions SET revision = revision + 1 WHERE session_id = ? AND revision = ?", (session_id, revision)
        )
        if not cursor.rowcount:
            raise RevisionError(f"conversation {session_id} was continued or removed by another process")
        row = self._database.rows("SELECT number, title FROM sessions WHERE session_id = ?", (session_id,))[0]
        return int(row[0]), str(row[1])

    def _insert(self, number: int, position: int, message: Message, now: float) -> int:
        cursor = self._database.execute(
            "INSERT INTO messages (number, position, role, text, is_cut, token_ids, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, position, message.role, message.text, message.is_cut, _packed(message.token_ids), now),
        )
        assert cursor.lastrowid is not None
        self._index.add(cursor.lastrowid, message.text)
        return cursor.lastrowid

    def _delete_messages(self, where: str, values: tuple[object, ...]) -> None:
        self._index.forget(where, values)
        self._database.execute(f"DELETE FROM messages WHERE {where}", values)


def _packed(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _unpacked(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)
