"""Options of `cg-local chat`, and all of them together.

This file owns their names, bounds and help. Invariant: ChatArguments has a member for each parameter of the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

import typer

from cg_local.cli.options import ModelArguments
from cg_local.cli.request import Request

CONTEXT_TOKENS = 8192
"""CodeGemma was trained for as many; a model that was trained for fewer has those."""

Question = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[QUESTION]", help="Answer this and end; without it, talk.", show_default=False),
]
System = Annotated[
    Optional[str], typer.Option("--system", "-s", metavar="TEXT", help="What the model should know or be like.")  # noqa: UP045
]
Files = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--file", "-f", metavar="FILE[:A-B]", help="A file, or lines of it, to ask about; may be repeated."),
]
Template = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--template",
        "-t",
        metavar="NAME",
        help="Ask in the words of a template: explain, review, test, docstring, commit, or yours.",
    ),
]
Variables = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--var", metavar="NAME=VALUE", help="For the template's {{NAME}}; may be repeated."),
]
ChatModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", "-m", metavar="MODEL", help="Embedded name, name in the data folder, or model folder."),
]
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--max-tokens", min=1, help="Tokens of an answer at most; default: what the context holds."),
]
ContextTokens = Annotated[
    int, typer.Option("--context-tokens", min=64, help="Tokens of the conversation at most; the newest are kept.")
]
Continue = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")]
Session = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--session", metavar="ID|NAME", help="Go on with a saved conversation."),
]
Save = Annotated[bool, typer.Option("--save/--no-save", help="Save the conversation; or keep nothing of it on disk.")]
Extract = Annotated[bool, typer.Option("--extract", "-x", help="Write only the first code block.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Leave out the middle of what is too long.")]
Force = Annotated[bool, typer.Option("--force", help="Let a model answer that is not tuned for chat.")]
Vi = Annotated[bool, typer.Option("--vi/--emacs", help="The keys of vi, or of emacs; /set vi later.")]
Markdown = Annotated[bool, typer.Option("--markdown/--plain", help="Markdown and colours, or neither.")]
Verbose = Annotated[bool, typer.Option("--verbose/--quiet", help="Show what each answer took.")]


@dataclass(frozen=True)
class ChatArguments(ModelArguments):
    """The parameters of the command, as its help describes them."""

    question: list[str] | None
    system: str | None
    file: list[str] | None
    model: str | None
    continue_last: bool
    session: str | None
    save: bool
    template: str | None
    var: list[str] | None
    extract: bool
    truncate: bool
    force: bool
    vi: bool
    markdown: bool
    verbose: bool
    max_tokens: int | None
    context_tokens: int

    @property
    def request(self) -> Request:
        """What is to be answered once, if anything is."""
        return Request(
            words=self.question or (),
            files=self.file or (),
            template=self.template,
            variables=self.var or (),
            system=self.system,
            extract=self.extract,
            json=self.json,
            truncate=self.truncate,
            force=self.force,
            markdown=self.markdown,
        )
