"""Saving a conversation under way, whatever happens to the disk.

This file owns when something is saved and what follows from a failure. It runs no statement itself. Invariant: no
method raises for what a disk or another process does; the first failure is one line of notice, the chat goes on, and
the next `save` writes everything that is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cg_local.conversation import Message
from cg_local.errors import RevisionError, SessionBusyError, SessionDamageError, SessionError
from cg_local.sessions.database import BUSY_SECONDS, database_path, identity_of, move_aside
from cg_local.sessions.store import SavedSession, SessionStore

PIECE_WAIT_SECONDS = 0.05
"""How long a piece of an answer waits for other processes before it is kept for the next one."""
SLOW_PIECE_SECONDS = 1.0
"""Where every write waits for the disk, pieces are collected for so long."""

Notice = Callable[[str], None]


class SessionRecorder:
    """Saves one conversation at a time as it goes; for one thread at a time.

    The conversation appears in the database with its first message. `save` may be given any later state of it: what
    was undone, regenerated or edited is replaced.

    Args:
        on_notice: called with each one-line thing that the user should be told.
        model: as the attribute.
        path: of the database; None: the user's.

    Attributes:
        model: of the conversations that begin from now on.
        settings: what a new conversation keeps beside its text; JSON values.
    """

    def __init__(self, on_notice: Notice, *, model: str = "", path: Path | None = None) -> None:
        self._notice, self._path, self.model = on_notice, path or database_path(), model
        self.settings: Mapping[str, object] = {}
        self._store: SessionStore | None = None
        self._fault: str | None = None
        self._saved: tuple[Message, ...] = ()
        self._last_piece_at = 0.0
        self._session: str | None = None
        self._title: str | None = None
        self._identity: tuple[int, int] | None = None
        self.begin()

    def begin(self) -> None:
        """Let the next `save` begin a new conversation; the one under way stays as it was saved last."""
        self._title = None
        self._forget()
        self._state: tuple[Message, ...] = ()  # as `save` was given it
        self._answer, self._answer_ids = "", list[int]()

    def resume(self, session: SavedSession) -> None:
        """Go on with a conversation that `SessionStore.load` returned."""
        self.begin()
        self._session, self._revision = session.session_id, session.revision
        self._state = self._saved = session.messages

    @property
    def session_id(self) -> str | None:
        """Id of the conversation under way; None before it was saved."""
        return self._session

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to save failed."""
        return self._fault is not None

    def save(self, messages: Sequence[Message]) -> bool:
        """Save a state of the conversation; after an answer it waits until the disk has it.

        Args:
            messages: all of it, a system message first.

        Returns:
            Whether it is saved.
        """
        if not messages and self._session is None:
            return True
        self._state, self._answer, self._answer_ids = tuple(messages), "", []
        return self._attempt(self._save_state)

    def add(self, text: str, token_ids: Iterable[int] = ()) -> None:
        """Save a piece of the answer to what was saved last; `save` ends it.

        Args:
            text: what follows what was added before.
            token_ids: its tokens.
        """
        self._answer += text
        self._answer_ids += token_ids
        if self._store is None or self._session is None or self.is_failing:
            return
        if self._store.has_quick_writes or time.monotonic() - self._last_piece_at >= SLOW_PIECE_SECONDS:
            self._last_piece_at = time.monotonic()
            self._attempt(self._save_piece, is_piece=True)

    def rename(self, title: str) -> bool:
        """Name the conversation; one that is not saved yet gets the name with its first message."""
        self._title = title
        return self._session is None or self._attempt(self._save_title)

    def close(self) -> None:
        """Close the database."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _forget(self) -> None:
        """Take nothing for saved."""
        self._session, self._revision = None, 0
        self._saved = ()
        self._answer_id: int | None = None
        self._num_saved = self._num_saved_ids = 0  # characters and tokens of the answer

    def _attempt(self, action: Callable[[], None], *, is_piece: bool = False) -> bool:
        """Run what writes; answer what can be answered, and tell of the rest once."""
        try:
            self._open(PIECE_WAIT_SECONDS if is_piece else BUSY_SECONDS)
            try:
                action()
            except RevisionError:
                if is_piece:  # the `save` at the answer's end will find out too, and has all of it
                    return False
                self._branch_off()
        except SessionBusyError as error:
            if not is_piece:
                self._report(error)
            return False
        except SessionDamageError as error:
            return self._begin_anew(error)
        except SessionError as error:
            self._report(error)
            return False
        if self._fault is not None:
            self._fault = None
            self._notice("the conversation is being saved again")
        return True

    def _open(self, wait_seconds: float) -> None:
        if self._store is not None and not self._store.is_in_place:
            self.close()
            self._forget()
            self._notice(f"{self._path}: removed or replaced meanwhile; the conversation is saved there anew")
        if self._store is None:
            self._identity = identity_of(self._path)
            self._store = SessionStore(self._path)
            self._identity = identity_of(self._path)  # it may have been created
        self._store.wait_for_locks(wait_seconds)

    def _save_state(self) -> None:
        messages = self._state
        first = _num_same(self._saved, messages)
        is_same = first == len(messages) == len(self._saved)
        store = self._opened
        if self._session is not None and is_same and self._answer_id is None:
            if not store.holds(self._session):
                raise RevisionError(f"conversation {self._session} was removed by another process")
            return
        if self._session is None:
            created = store.create(model=self.model, settings=self.settings)
            self._session, self._revision = created.session_id, created.revision
        self._revision = store.write(
            self._session,
            messages,
            first=first,
            revision=self._revision,
            is_durable=bool(messages) and messages[-1].role != "user",
        )
        self._saved, self._answer_id = messages, None
        self._num_saved = self._num_saved_ids = 0
        if self._title is not None:
            self._save_title()

    def _save_piece(self) -> None:
        if self._session is None:  # the database was replaced under the answer
            self._save_state()
        assert self._session is not None
        if self._answer_id is None:
            place = len(self._saved)
            self._answer_id = self._opened.begin_answer(self._session, place, revision=self._revision)
            self._revision += 1
        text, token_ids = self._answer[self._num_saved :], self._answer_ids[self._num_saved_ids :]
        self._opened.add_piece(self._answer_id, text, token_ids)
        self._num_saved, self._num_saved_ids = len(self._answer), len(self._answer_ids)

    def _save_title(self) -> None:
        assert self._title is not None
        if self._session is None:  # the database was replaced meanwhile; what is saved anew gets the title
            self._save_state()
        else:
            self._opened.rename(self._session, self._title)

    def _branch_off(self) -> None:
        """Save the conversation as a new one, because somebody else went on with the old one."""
        old = self._session
        self._forget()
        self._save_state()
        self._notice(f"conversation {old} was continued or removed elsewhere; this one is saved as {self._session}")

    def _begin_anew(self, damage: SessionDamageError) -> bool:
        """Move a damaged database aside and save everything that is known into a new one."""
        self.close()
        self._forget()
        try:
            # Another process may have done it already.
            if identity_of(self._path) == self._identity:
                aside = move_aside(self._path)
                self._notice(f"{self._path} was damaged: kept as {aside.name}; saved conversations begin anew")
            self._open(BUSY_SECONDS)
            self._save_state()
            if self._answer:
                self._save_piece()
        except SessionError as error:
            self._report(error)
            return False
        self._fault = None
        return True

    def _report(self, error: SessionError) -> None:
        if str(error) != self._fault:
            self._fault = str(error)
            self._notice(f"this conversation is not being saved: {error}")

    @property
    def _opened(self) -> SessionStore:
        assert self._store is not None
        return self._store


def _num_same(old: Sequence[Message], new: Sequence[Message]) -> int:
    """Return how many messages from the start are the same."""
    pairs = zip(old, new)  # noqa: B905 (the shorter one decides)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(old), len(new)))
