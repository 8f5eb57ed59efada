"""Greetings, questions about the model itself, refusals and short facts about Python.

Owns the reading of `small_talk.toml`. Invariant: an answer says of the model only what its card says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cg_local.training.instruction.conversation import Conversation, Turn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("small_talk.toml")

LANGUAGES = (
    "Java", "JavaScript", "C", "C++", "Rust", "Go", "Ruby", "PHP", "Kotlin", "Swift", "TypeScript", "SQL", "Haskell",
    "Perl", "Scala", "Bash", "HTML", "CSS", "R", "Lua",
)  # fmt: skip
LARGE_PROGRAMS = (
    "a web browser", "an operating system", "a chess engine", "a game", "a website", "a web server", "a compiler",
    "a database", "a mobile app", "a chat bot", "a neural network", "a search engine", "a 3D engine", "an online shop",
    "a video editor", "a trading bot", "a word processor", "a social network", "a spreadsheet program",
)  # fmt: skip


def wordings(ask: str) -> list[str]:
    """A question as it stands, with a capital, and with or without its mark."""
    bare = ask.rstrip("?!")
    capital = ask[:1].upper() + ask[1:]
    return list(dict.fromkeys([ask, capital, bare.lower(), bare[:1].upper() + bare[1:] + "."]))


def small_talk() -> Iterator[Conversation]:
    """Every question of the file in its wordings, each with its answer."""
    for table in tomllib.loads(FILE.read_text(encoding="utf-8")).values():
        for ask in table["ask"]:
            fillings = LANGUAGES if "$l" in ask else LARGE_PROGRAMS if "$k" in ask else ("",)
            for filling in fillings:
                question, answer = (
                    text.replace("$l", filling).replace("$k", filling) for text in (ask, table["answer"])
                )
                for wording in wordings(question):
                    yield Conversation("talk", (Turn(wording, answer),))
