"""Completion of commands and their arguments.

This file owns what is offered where. Invariant: offering reads names only, never a file's content, and a folder that
cannot be read offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from cg_local.cli.repl.commands import Command, CommandTable
from cg_local.cli.repl.model_commands import TOPICS
from cg_local.cli.repl.settings import SUMMARIES
from cg_local.errors import CgLocalError
from cg_local.model_store import known_models

MAX_SESSIONS = 20


class ChatCompleter(Completer):
    """Completes a line that begins with a command; elsewhere, paths.

    Args:
        table: of the commands.
    """

    def __init__(self, table: CommandTable) -> None:
        self._table = table
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return what fits before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return self._path_completions(text.split()[-1] if text and not text[-1].isspace() else "")
        word, space, argument = text.partition(" ")
        if not space:
            return self._command_completions(word)
        command = self._table.find(word)
        return self._argument_completions(command, argument) if command is not None else ()

    def _command_completions(self, word: str) -> Iterator[Completion]:
        for command in self._table.commands:
            # An alias is offered when only it fits: /b is /bye.
            fits = [name for name in (command.name, *command.aliases) if name.startswith(word.lower())]
            if fits:
                yield Completion(fits[0], -len(word), display_meta=command.summary)

    def _argument_completions(self, command: Command, argument: str) -> Iterable[Completion]:
        if command.completes == "path":
            return self._path_completions(argument)
        names: dict[str, str] = {}
        if command.completes == "setting" and " " not in argument:
            names = dict(SUMMARIES)
        elif command.completes == "topic":
            names = dict.fromkeys(TOPICS, "")
        elif command.completes == "model":
            names = dict.fromkeys(known_models(), "")
        elif command.completes == "command":
            names = {each.name: each.summary for each in self._table.commands}
        elif command.completes == "session":
            names = _sessions()
        if command.completes == "model" and ("/" in argument or "\\" in argument):
            return self._path_completions(argument)
        return (
            Completion(name, -len(argument), display_meta=meta)
            for name, meta in names.items()
            if name.startswith(argument) or (command.completes == "command" and name[1:].startswith(argument))
        )

    def _path_completions(self, word: str) -> Iterable[Completion]:
        if not word:
            return ()
        return self._paths.get_completions(Document(word), CompleteEvent(completion_requested=True))


def _sessions() -> dict[str, str]:
    from cg_local.sessions import SessionStore

    try:
        with SessionStore(is_read_only=True) as store:
            return {summary.session_id: summary.title for summary in store.summaries(MAX_SESSIONS)}
    except CgLocalError:
        return {}
