"""Conversations on disk: saved as they go, found, continued and removed.

`store` owns what is read and written, `database` the file, `search` the full text, `recorder` the saving of a
conversation under way. Invariant: nothing here is needed to chat; every fault is a line of notice, and no text is lost
that was saved once.
"""

from cg_local.sessions.recorder import SessionRecorder
from cg_local.sessions.search import SearchHit
from cg_local.sessions.store import LAST, SavedSession, SessionStore, SessionSummary

__all__ = ["LAST", "SavedSession", "SearchHit", "SessionRecorder", "SessionStore", "SessionSummary"]
