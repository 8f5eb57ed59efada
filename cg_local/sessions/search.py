"""Search in saved conversations: which messages hold every word of a query.

This file owns the index, SQLite's FTS5 over runs of three characters, and what "holds" means. Invariant: with the
index and without (an SQLite that lacks it, words shorter than three characters) a query finds the same messages; the
index only spares reading the others.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from cg_local.errors import SessionBusyError, SessionError
from cg_local.sessions.database import Database

SNIPPET_CHARACTERS = 80
_TERM = re.compile(r'"([^"]+)"?|(\S+)')
TITLE = 1 << 31
"""Stands for the place of a title: behind all messages."""
_MIN_INDEXED = 3  # what FTS5's trigram tokenizer needs of a word
UNFOLDED = (
    "\u00df\u0130\u0149\u017f\u01f0\u1e96\u1e97\u1e98\u1e99\u1e9a\u1e9e\u212a\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
)
"""Characters beyond ASCII that have ASCII letters in their folded case ("\u00df" is "ss"): a word of ASCII alone may
stand in a text with one of them, and FTS5, which folds one character to one, does not find it there."""
_HAS_UNFOLDED = f"text GLOB '*[{UNFOLDED}]*'"
_STALE = "search_is_stale"


@dataclass(frozen=True)
class SearchHit:
    """A message that was found.

    Attributes:
        session_id, title: of its conversation.
        updated_at: of its conversation, seconds since 1970.
        position: of the message, from 0; TITLE when the title was found and no message.
        role: "system", "user", "model"; "title" where the title was found.
        snippet: one line around the first word.
    """

    session_id: str
    title: str
    updated_at: float
    position: int
    role: str
    snippet: str


@dataclass(frozen=True)
class Terms:
    """The words of a query, in folded case."""

    words: tuple[str, ...]

    @classmethod
    def parse(cls, query: str) -> Terms:
        """Split a query at white space; double quotes keep a phrase together."""
        return cls(tuple((quoted or plain).casefold() for quoted, plain in _TERM.findall(query)))

    def are_in(self, text: str) -> bool:
        """Whether a text holds every word."""
        folded = text.casefold()
        return all(word in folded for word in self.words)

    def snippet(self, text: str) -> str:
        """Return one line of a text around the first of the words."""
        folded = text.casefold()
        start = max(0, min(folded.find(word) for word in self.words) - SNIPPET_CHARACTERS // 3)
        line = " ".join(text[start : start + 2 * SNIPPET_CHARACTERS].split())
        cut = line[:SNIPPET_CHARACTERS]
        dots = "\N{HORIZONTAL ELLIPSIS}"
        return (dots if start else "") + cut + (dots if len(line) > len(cut) else "")


class SearchIndex:
    """Keeps the index in step with the messages, inside of the store's transactions."""

    def __init__(self, database: Database, *, is_read_only: bool = False) -> None:
        self._database = database
        self._has_index = self._is_ready() if is_read_only else self._make_ready()
        self._is_marked_stale = False

    def add(self, message_id: int, text: str) -> None:
        """Take up a message."""
        if self._has_index:
            self._database.execute("INSERT INTO message_index (rowid, text) VALUES (?, ?)", (message_id, text))
        elif not self._is_marked_stale:
            self._database.execute("INSERT OR REPLACE INTO marks VALUES (?, '1')", (_STALE,))
            self._is_marked_stale = True

    def forget(self, where: str, values: tuple[object, ...]) -> None:
        """Drop messages that are about to be deleted; `where` is the condition of their table."""
        if self._has_index:
            self._database.execute(
                "INSERT INTO message_index (message_index, rowid, text) "
                f"SELECT 'delete', message_id, text FROM messages WHERE {where}",
                values,
            )

    def tidy(self) -> None:
        """Write the index anew, so that it holds nothing of messages that were deleted."""
        if self._has_index:
            self._database.execute("INSERT INTO message_index (message_index) VALUES ('optimize')")

    def search(self, terms: Terms, limit: int) -> list[SearchHit]:
        """Return the messages, and titles, that hold every word; the newest conversations first."""
        if not terms.words:
            return []
        hits: list[SearchHit] = []
        for session_id, title, updated_at, position, role, text in self._candidates(terms):
            if len(hits) == limit:
                break
            # Most titles are the first question's line, which was found already.
            is_told = position == TITLE and hits and hits[-1].session_id == session_id
            if terms.are_in(text) and not is_told:
                hits.append(SearchHit(session_id, title, updated_at, position, role, terms.snippet(text)))
        return hits

    def _candidates(self, terms: Terms) -> sqlite3.Cursor:
        # FTS5 folds other letters in another way than `casefold` does.
        indexed = [word for word in terms.words if len(word) >= _MIN_INDEXED and word.isascii()]
        match, values = "1", list[object]()
        if self._has_index and indexed:
            # An answer whose process was killed stands in pieces, which the index does not know.
            match = f"""(m.message_id IN (SELECT rowid FROM message_index WHERE message_index MATCH ?
                                        UNION ALL SELECT message_id FROM messages WHERE {_HAS_UNFOLDED})
                        OR EXISTS (SELECT 1 FROM pieces p WHERE p.message_id = m.message_id))"""
            values.append(" AND ".join('"{}"'.format(word.replace('"', '""')) for word in indexed))
        return self._database.execute(
            f"""
            SELECT session_id, title, updated_at, position, role, text || coalesce(
                (SELECT group_concat(p.text, '') FROM
                    (SELECT text FROM pieces WHERE pieces.message_id = m.message_id ORDER BY piece) p), '')
            FROM sessions JOIN messages m USING (number) WHERE {match}
            UNION ALL
            SELECT session_id, title, updated_at, {TITLE}, 'title', title FROM sessions
            ORDER BY updated_at DESC, session_id, position
            """,
            tuple(values),
        )

    def _is_ready(self) -> bool:
        """Whether the index can be read and knows every message."""
        try:
            self._database.rows("SELECT rowid FROM message_index LIMIT 1")
            return not self._database.rows("SELECT 1 FROM marks WHERE name = ?", (_STALE,))
        except SessionError:  # no such table, or no such module
            return False

    def _make_ready(self) -> bool:
        """Create the index where SQLite can, and write it anew when an SQLite that cannot added messages."""
        if self._is_ready():
            return True
        try:
            with self._database.transaction(is_durable=False):
                self._database.execute(
                    "CREATE VIRTUAL TABLE IF NOT EXISTS message_index "
                    "USING fts5(text, content='messages', content_rowid='message_id', tokenize='trigram')"
                )
                self._database.execute(
                    f"CREATE INDEX IF NOT EXISTS messages_unfolded ON messages (message_id) WHERE {_HAS_UNFOLDED}"
                )
                self._database.execute("INSERT INTO message_index (message_index) VALUES ('rebuild')")
                self._database.execute("DELETE FROM marks WHERE name = ?", (_STALE,))
        except SessionBusyError:
            raise
        except SessionError:
            return False
        return True
