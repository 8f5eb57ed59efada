"""Saved conversations as Markdown and as JSON documents.

This file owns how a conversation reads outside of cg-local. Invariant: the JSON document holds everything that was
saved; Markdown holds every text as it was written.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cg_local.sessions import SavedSession, SessionSummary

_HEADINGS = {"system": "System", "user": "You", "model": "Model"}


def as_markdown(session: SavedSession) -> str:
    """Return a conversation as a Markdown document; an answer that was cut says so."""
    parts = [
        f"# {session.title or session.session_id}",
        f"{session.model}, {local_time(session.created_at)}, conversation {session.session_id}",
    ]
    for message in session.messages:
        cut = " (cut)" if message.is_cut else ""
        parts += [f"## {_HEADINGS.get(message.role, message.role)}{cut}", message.text.strip("\n")]
    return "\n\n".join(parts) + "\n"


def as_document(session: SavedSession) -> dict[str, Any]:
    """Return a conversation as a JSON object."""
    messages = [
        {"role": message.role, "content": message.text, "is_cut": message.is_cut} for message in session.messages
    ]
    return {**summary_document(session), "settings": dict(session.settings), "messages": messages}


def summary_document(session: SessionSummary) -> dict[str, Any]:
    """Return what a list shows as a JSON object; times are ISO 8601 with the offset from UTC."""
    return {
        "id": session.session_id,
        "title": session.title,
        "model": session.model,
        "created_at": iso_time(session.created_at),
        "updated_at": iso_time(session.updated_at),
        "num_messages": session.num_messages,
    }


def local_time(seconds: float) -> str:
    """Return a time for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def iso_time(seconds: float) -> str:
    """Return a time for programs."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
