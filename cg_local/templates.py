"""Templates of questions: the built-in ones and the user's, and what stands in the place of their variables.

This file owns the form of a template and its variables. It knows no model. Invariant: what a user gave in is put into a
template once and never read for variables itself, and a variable without a value is an error, not an empty place.

A template of the user's is the file NAME.md (or NAME.txt) in the folder `templates` beside config.toml. It may begin
with a head in TOML between two lines `+++`: `description`, `system` (the system text), `extract` (true: only the first
code block of the answer is wanted). `{{name}}` is a variable, `{{name|text}}` one with a default. These have values:

    {{input}}     everything that was given: files, piped text, words, in this order
    {{fenced}}    the same, with the piped text in a fence
    {{words}}     the words of the command line; {{piped}}: what was piped in; {{files}}: the attached files
    {{file}}      path of the first attached file; {{language}}: its language by its suffix

and whatever `--var NAME=VALUE` gives. Input that a template does not mention is put behind it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cg_local.errors import SettingsError
from cg_local.question import Question, language_of
from cg_local.settings import config_folder

MAX_TEMPLATE_BYTES = 1 << 20
SUFFIXES = (".md", ".txt")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"\{\{ *(?P<name>[A-Za-z_][A-Za-z0-9_]*) *(?:\|(?P<default>[^{}]*))?\}\}")
_HEAD = re.compile(r"\+\+\+[ \t]*\n(?P<head>.*?)^\+\+\+[ \t]*\n", re.DOTALL | re.MULTILINE)
_INPUT = frozenset(("input", "fenced", "words", "piped", "files"))
_HEAD_KEYS: Mapping[str, type] = {"description": str, "system": str, "extract": bool}


@dataclass(frozen=True)
class Template:
    """A template.

    Attributes:
        name: how it is asked for.
        text: with variables.
        description: one line for people.
        system: system text; "" for none.
        extract: only the first code block of the answer is wanted.
        needs_staged_changes: without input, it asks about the changes that `git add` has staged.
        path: of the user's file; None: built in.
    """

    name: str
    text: str
    description: str = ""
    system: str = ""
    extract: bool = False
    needs_staged_changes: bool = False
    path: Path | None = None

    @property
    def needs_input(self) -> bool:
        """Whether it says nothing without something to put in."""
        return any(match["name"] in _INPUT and match["default"] is None for match in _VARIABLE.finditer(self.text))

    @property
    def variables(self) -> set[str]:
        """Names of all that may be given a value."""
        return {match["name"] for match in _VARIABLE.finditer(self.text)}

    def render(self, question: Question, variables: Mapping[str, str]) -> str:
        """Return the question to ask.

        Args:
            question: what was given in.
            variables: from `--var`; they win over all others.

        Raises:
            SettingsError: a variable has neither value nor default.
        """
        values = {**_values(question), **variables}
        missing = sorted(
            {match["name"] for match in _VARIABLE.finditer(self.text) if match["default"] is None} - values.keys()
        )
        if missing:
            raise SettingsError(f"template {self.name}: {missing[0]} has no value; give --var {missing[0]}=TEXT")
        # An empty value, of a language that is not known for one, takes the default too.
        text = _VARIABLE.sub(lambda match: values.get(match["name"]) or match["default"] or "", self.text).strip("\n")
        if not self.variables & _INPUT and not question.is_empty:
            text += "\n\n" + question.text(is_fenced=True)
        return text


BUILT_IN: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template(
            "explain",
            "Explain this {{language|text}}: what it does or says, how it works, and what in it is easily overlooked. "
            "Be brief.\n\n{{fenced}}",
            "what a file or an error message means",
        ),
        Template(
            "review",
            "Review this {{language|code}}. Name faults first, then risks, then what could be simpler; say for each "
            "which line it is and how to mend it. If nothing is wrong, say so.\n\n{{fenced}}",
            "faults and risks of code",
        ),
        Template(
            "test",
            "Write tests for this {{language|code}} with {{framework|the framework that is usual for its language}}. "
            "Cover what it should do, its bounds and its errors. Answer with one code block.\n\n{{fenced}}",
            "tests for code; --var framework=NAME",
        ),
        Template(
            "docstring",
            "Write {{style|the usual style of}} documentation comments for every function and class of this "
            "{{language|code}} that has none: what it does, its arguments, results and errors. Change nothing else, "
            "and answer with the whole code in one code block.\n\n{{fenced}}",
            "code with documentation comments; --var style=NAME",
        ),
        Template(
            "commit",
            "Write the commit message of this change: a subject in the imperative of at most 72 characters, an empty "
            "line, then in a few lines why the change is made. Answer with the message alone.\n\n{{fenced}}",
            "a commit message for `git diff --staged`",
            needs_staged_changes=True,
        ),
    )
}


def find_template(name: str) -> Template:
    """Return a template: the user's if there is one of that name, else the built-in one.

    Raises:
        SettingsError: there is none, or its file cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is no name of a template; known are {_known()}")
    for suffix in SUFFIXES:
        path = templates_folder() / f"{name}{suffix}"
        if path.is_file():
            return _read(name, path)
    if name in BUILT_IN:
        return BUILT_IN[name]
    raise SettingsError(f"no template {name!r}; known are {_known()}; yours goes to {templates_folder() / name}.md")


def all_templates() -> list[Template]:
    """Return every template that can be asked for, by name; one that cannot be read has an error for a description."""
    found = dict(BUILT_IN)
    for path in _user_files():
        try:
            found[path.stem] = _read(path.stem, path)
        except SettingsError as error:
            found[path.stem] = Template(path.stem, "", str(error), path=path)
    return [found[name] for name in sorted(found)]


def templates_folder() -> Path:
    """Return the folder of the user's templates."""
    return config_folder() / "templates"


def _user_files() -> list[Path]:
    return [path for suffix in reversed(SUFFIXES) for path in sorted(templates_folder().glob(f"*{suffix}"))]


def _known() -> str:
    return ", ".join(sorted({*BUILT_IN, *(path.stem for path in _user_files())}))


def _values(question: Question) -> dict[str, str]:
    return {
        "input": question.text(),
        "fenced": question.text(is_fenced=True),
        "words": question.words,
        "piped": question.piped,
        "files": "\n\n".join(file.as_markdown() for file in question.files),
        "file": question.files[0].name if question.files else "",
        "language": language_of(question),
    }


def _read(name: str, path: Path) -> Template:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(data) > MAX_TEMPLATE_BYTES:
            raise SettingsError(f"{path}: more than {MAX_TEMPLATE_BYTES:,} bytes; a template is a short text")
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as cause:
        raise SettingsError(f"{path}: {cause.strerror}; make it readable") from cause
    except UnicodeDecodeError as cause:
        raise SettingsError(f"{path}: byte {cause.start} is no UTF-8; save it as UTF-8") from cause
    head: dict[str, Any] = {}
    if match := _HEAD.match(text):
        head = _parsed_head(match["head"], path)
        text = text[match.end() :]
    if not text.strip():
        raise SettingsError(f"{path}: no text; write what to ask, with {{{{input}}}} where the input goes")
    return Template(name, text, path=path, **head)


def _parsed_head(text: str, path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        head: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise SettingsError(f"{path}: its head is not TOML ({cause})") from cause
    for key, value in head.items():
        if key not in _HEAD_KEYS:
            raise SettingsError(f"{path}: unknown key {key!r} in its head; known are {', '.join(_HEAD_KEYS)}")
        if type(value) is not _HEAD_KEYS[key]:
            expected = "true or false" if _HEAD_KEYS[key] is bool else "a text in quotes"
            raise SettingsError(f"{path}: {key} in its head is {value!r}; give {expected}")
    return head
