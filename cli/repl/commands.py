"""The commands of a chat: their names, and which one a line is.

This file owns names, aliases and the help. What a command does stands in the files beside this one. Invariant: no
command executes anything that a model wrote.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cg_local.cli.repl.chat_state import Chat
from cg_local.errors import PromptError

Run = Callable[[Chat, str], None]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: with its slash.
        usage: of its arguments; "" for none.
        summary: what it does, in a few words.
        run: does it, given what stands behind the name.
        aliases: other names.
        completes: what its argument is: "path", "model", "setting", "topic", "session", "command", or "" for a text.
    """

    name: str
    usage: str
    summary: str
    run: Run
    aliases: tuple[str, ...] = ()
    completes: str = ""


class CommandTable:
    """All commands by their names.

    Args:
        commands: in the order of the help.
    """

    def __init__(self, commands: Iterable[Command]) -> None:
        self.commands = tuple(commands)
        self._by_name = {name: command for command in self.commands for name in (command.name, *command.aliases)}

    def find(self, name: str) -> Command | None:
        """Return the command of a name, None if there is none."""
        return self._by_name.get(name.lower())

    def names(self) -> list[str]:
        """Return all names and aliases."""
        return list(self._by_name)

    def parse(self, text: str) -> tuple[Command, str] | None:
        """Return the command that a text is and its argument; None for a question.

        A text that begins with a path ("/etc/hosts says ...") is a question; so is what begins with a space.

        Raises:
            PromptError: it reads like a command and is none; the message says what it could be.
        """
        word, _, rest = text.partition(" ") if "\n" not in text.partition(" ")[0] else text.partition("\n")
        if text.strip().lower() in ("exit", "quit"):
            word = "/exit"
        if not word.startswith("/") or word == "/":
            return None
        command = self.find(word)
        if command is not None:
            return command, rest.strip()
        if "/" in word[1:] or os.path.exists(word) or word.startswith(("//", "/*")):
            return None
        near = difflib.get_close_matches(word.lower(), self.names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "/help lists the commands."
        raise PromptError(f"{word} is no command; {hint} A space before it sends it as a question.")

    def help(self, columns: int) -> str:
        """Return a line for each command, as wide as the terminal allows."""
        left = [f"{command.name} {command.usage}".rstrip() for command in self.commands]
        width = max(map(len, left)) + 2
        lines = []
        for text, command in zip(left, self.commands, strict=True):
            aliases = f" (also {', '.join(command.aliases)})" if command.aliases else ""
            summary = command.summary + aliases
            if columns and width + len(summary) >= columns:
                summary = command.summary
            if columns and width + len(summary) >= columns:
                lines += [text, f"  {summary}"]
            else:
                lines.append(f"{text:<{width}}{summary}")
        return "\n".join(lines)

    def help_of(self, name: str) -> str | None:
        """Return what there is to say of one command; None if there is none of that name."""
        command = self.find(name if name.startswith("/") else f"/{name}")
        if command is None:
            return None
        also = f"\nAlso: {', '.join(command.aliases)}" if command.aliases else ""
        return f"{command.name} {command.usage}".rstrip() + f"\n  {command.summary}{also}"
