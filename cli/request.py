"""What `cg-local chat` is asked to answer once: words, files, a pipe, a template.

This file owns the reading of them. It loads no model. Invariant: what is wrong with the input is found here, before
anything slow begins, and what is read is bounded.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from cg_local.errors import PromptError, SourceFileError

if TYPE_CHECKING:
    from cg_local.question import Question
    from cg_local.templates import Template

MAX_INPUT_BYTES = 16 << 20
"""Of a pipe; a context of 8,192 tokens holds some tens of kilobytes."""


@dataclass(frozen=True)
class Request:
    """What to ask and how to answer.

    Attributes:
        words: of the command line.
        files: FILE or FILE:A-B, to be attached.
        template: its name; None for none.
        variables: NAME=VALUE for the template.
        system: the system text, in place of the template's.
        extract: write the first code block and nothing else.
        json: write one document.
        truncate: leave out the middle of what is too long.
        force: ask a model that is not tuned for chat.
        markdown: render the answer on a terminal.
    """

    words: Sequence[str] = ()
    files: Sequence[str] = ()
    template: str | None = None
    variables: Sequence[str] = ()
    system: str | None = None
    extract: bool = False
    json: bool = False
    truncate: bool = False
    force: bool = False
    markdown: bool = True


@dataclass(frozen=True)
class Prepared:
    """A request whose files and pipes have been read."""

    question: Question
    template: Template | None
    variables: Mapping[str, str]
    system: str
    extract: bool

    def text(self, question: Question) -> str:
        """Return what the model is asked."""
        return question.text() if self.template is None else self.template.render(question, self.variables)


def wants_one_answer(request: Request) -> bool:
    """Whether `cg-local chat` shall answer once and end, instead of beginning a conversation."""
    is_asked = request.words or request.template is not None or request.extract or request.json
    return bool(is_asked) or not has_terminal_input()


def has_terminal_input() -> bool:
    """Whether a person types into standard input; false for pipes, files and where it is closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def prepare(request: Request) -> Prepared:
    """Read files, pipe and template; everything that can be wrong with them is found before a model is loaded.

    Raises:
        SourceFileError, PromptError, SettingsError: something cannot be read, or there is nothing to ask.
    """
    from cg_local.attachments import read_attachment
    from cg_local.question import Question

    template = None
    if request.template is not None:
        from cg_local.templates import find_template

        template = find_template(request.template)
    variables = _variables(request.variables, template)
    files = tuple(read_attachment(name) for name in request.files)
    question = Question(" ".join(request.words).strip(), _piped(), files)
    if question.is_empty and template is not None and template.needs_staged_changes:
        question = Question(piped=staged_changes())
    if question.is_empty and (template is None or template.needs_input):
        what = "nothing was asked" if template is None else f"template {template.name} has nothing to work on"
        raise PromptError(f"{what}; write a question behind the command, pipe a text in, or name a file with -f")
    prepared = Prepared(
        question,
        template,
        variables,
        system=request.system if request.system is not None else (template.system if template else ""),
        extract=request.extract or (template is not None and template.extract and not request.json),
    )
    prepared.text(question)  # a variable without a value
    return prepared


def staged_changes() -> str:
    """Return `git diff --staged` of the current folder.

    Raises:
        SourceFileError: no git, no work tree, or nothing is staged.
    """
    if _git("rev-parse", "--is-inside-work-tree").strip() != b"true":
        raise SourceFileError("git: not inside a work tree; go into one, or pipe the changes in")
    changes = _git("diff", "--staged", "--no-color", "--no-ext-diff")
    if not changes.strip():
        raise SourceFileError("git diff --staged: no change is staged; `git add` some, or pipe the changes in")
    return changes.decode("utf-8", "replace")


def _git(*arguments: str) -> bytes:
    """Return what git writes; nothing where it fails."""
    try:
        done = subprocess.run(["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as cause:
        raise SourceFileError(f"git: cannot be started ({cause.strerror}); pipe the changes in") from cause
    return done.stdout if done.returncode == 0 else b""


def _piped() -> str:
    """Return what was piped in, "" where a person types or nothing comes."""
    from cg_local.infill.cursor import STANDARD_INPUT_NAME, decode_source

    if sys.stdin is None or has_terminal_input():
        return ""
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise SourceFileError(
            f"{STANDARD_INPUT_NAME}: more than {MAX_INPUT_BYTES >> 20} MiB, far more than a context holds; send less"
        )
    return decode_source(data, STANDARD_INPUT_NAME).text if data else ""


def _variables(pairs: Sequence[str], template: Template | None) -> dict[str, str]:
    if pairs and template is None:
        raise typer.BadParameter("variables are for a template; name one with -t.", param_hint="--var")
    variables = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not name.isidentifier():
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--var")
        if template is not None and name not in template.variables:
            known = ", ".join(sorted(template.variables)) or "none"
            message = f"template {template.name} has no variable {name!r}; it has {known}."
            raise typer.BadParameter(message, param_hint="--var")
        variables[name] = value
    return variables
