"""One question made of files, piped text and words, and what is done when it is too long.

This file owns the order of the parts and the cutting. It reads nothing (`attachments` and the command line do).
Invariant: what is left out of a question is only ever cut from the middle of its longest text, in whole lines where
lines are short enough, with a line in its place that says how much is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cg_local.attachments import Attachment
from cg_local.errors import PromptError
from cg_local.tokenizer import Tokenizer

MIN_EXCERPT_TOKENS = 64
"""A text that would have to become shorter than this is not worth asking about."""
FIRST_COUNT_CHARACTERS = 1 << 14
_MARKER_TOKENS = 32  # more than the line in place of the lines left out has


@dataclass(frozen=True)
class Question:
    """The parts of a question.

    Attributes:
        words: what was asked.
        piped: text of standard input; "" for none.
        files: attached files.
    """

    words: str = ""
    piped: str = ""
    files: tuple[Attachment, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked."""
        return not (self.words.strip() or self.piped.strip() or self.files)

    def text(self, *, is_fenced: bool = False) -> str:
        """Return all of it: files, piped text, words, with an empty line between.

        What is asked about comes first, so that a second question about it finds its K and V.

        Args:
            is_fenced: put the piped text into a fence, as code.
        """
        piped = fenced(self.piped) if is_fenced and self.piped.strip() else self.piped.strip("\n")
        parts = [*(file.as_markdown() for file in self.files), piped, self.words]
        return "\n\n".join(part for part in parts if part.strip())


def fenced(text: str, language: str = "") -> str:
    """Return a text in a fence that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def language_of(question: Question) -> str:
    """Return the language of the first file, as its suffix tells; "" where it does not."""
    return LANGUAGES.get(Path(question.files[0].name).suffix.lower(), "") if question.files else ""


def count_up_to(tokenizer: Tokenizer, text: str, limit: int) -> tuple[int, bool]:
    """Count the tokens of a text, without encoding much more than a limit needs.

    Returns:
        The count, and whether it is exact; if not, it is above the limit and estimated from the text's length.
    """
    num_characters = FIRST_COUNT_CHARACTERS
    while num_characters < len(text):
        count = len(tokenizer.encode(text[:num_characters]))
        if count > limit:
            estimate = count * len(text) // num_characters
            return max(limit + 1, round(estimate, 2 - len(str(estimate)))), False
        num_characters *= 2
    return len(tokenizer.encode(text)), True


def fit(
    tokenizer: Tokenizer, question: Question, render: Callable[[Question], str], limit: int, *, may_cut: bool
) -> tuple[str, str | None]:
    """Return the text of a question if it fits.

    Args:
        tokenizer: counts.
        question: the parts.
        render: makes the text of them.
        limit: tokens that the text may have.
        may_cut: leave out the middle of the longest part; otherwise a question that is too long is refused.

    Returns:
        The text, and one line that says what was left out; None if nothing was.

    Raises:
        PromptError: it is too long, and may not or cannot be cut.
    """
    text = render(question)
    count, is_exact = count_up_to(tokenizer, text, limit)
    if count <= limit:
        return text, None
    shown = f"{count:,}" if is_exact else f"about {count:,}"
    if not may_cut:
        raise PromptError(
            f"the question has {shown} tokens, {limit:,} fit; name lines with -f FILE:A-B, send less, or let "
            "--truncate leave out the middle"
        )
    rest, _ = count_up_to(tokenizer, render(_with_longest(question, "")), limit)
    shortened = _with_longest(question, excerpt(tokenizer, _longest(question)[1], limit - rest))
    text = render(shortened)
    if len(tokenizer.encode(text)) > limit:
        raise PromptError(f"the question has {shown} tokens, {limit:,} fit, and cutting it does not help; send less")
    return text, f"the middle of the question was left out: {shown} tokens, {limit:,} fit"


def excerpt(tokenizer: Tokenizer, text: str, max_tokens: int) -> str:
    """Return the beginning and the end of a text, with a line between that says how many lines are missing.

    Raises:
        PromptError: there is room for fewer than MIN_EXCERPT_TOKENS tokens.
    """
    room = max_tokens - _MARKER_TOKENS
    if room < MIN_EXCERPT_TOKENS:
        raise PromptError(f"the question leaves {max(room, 0):,} tokens for the text it is about; ask in fewer words")
    lines = text.splitlines(keepends=True)
    head = _leading(tokenizer, lines, room // 2)
    tail = _leading(tokenizer, lines[::-1], room - room // 2)[::-1]
    missing = len(lines) - len(head) - len(tail)
    if head and tail:
        return f"{''.join(head)}[... {missing:,} lines left out ...]\n{''.join(tail)}"
    # A line alone is too long: it is cut inside.
    size = _fitting_characters(tokenizer, text, room // 2)
    end = _fitting_characters(tokenizer, text[::-1], room // 2)
    return f"{text[:size]}\n[... {len(text) - size - end:,} characters left out ...]\n{text[len(text) - end :]}"


def _leading(tokenizer: Tokenizer, lines: list[str], limit: int) -> list[str]:
    """Return the first lines whose tokens together keep a limit; a line break ends a token, so their counts add up."""
    for number, line in enumerate(lines):
        limit -= count_up_to(tokenizer, line, limit)[0] if limit > 0 else 1
        if limit < 0:
            return lines[:number]
    return lines


def _fitting_characters(tokenizer: Tokenizer, text: str, limit: int) -> int:
    """Return a number of first characters that have at most so many tokens, by halving."""
    size = min(len(text), 8 * limit)
    while size and len(tokenizer.encode(text[:size])) > limit:
        size = size * 7 // 8
    return size


def _longest(question: Question) -> tuple[int, str]:
    """Return the place (-1: piped text; -2: words) and the text of the longest part."""
    parts = [(-2, question.words), (-1, question.piped), *((i, file.text) for i, file in enumerate(question.files))]
    return max(parts, key=lambda part: len(part[1]))


def _with_longest(question: Question, text: str) -> Question:
    place, _ = _longest(question)
    if place == -2:
        return replace(question, words=text)
    if place == -1:
        return replace(question, piped=text)
    files = list(question.files)
    files[place] = replace(files[place], text=text)
    return replace(question, files=tuple(files))


LANGUAGES = {
    ".bash": "shell", ".c": "C", ".cc": "C++", ".cpp": "C++", ".cs": "C#", ".css": "CSS", ".go": "Go", ".h": "C",
    ".hpp": "C++", ".hs": "Haskell", ".html": "HTML", ".java": "Java", ".jl": "Julia", ".js": "JavaScript",
    ".jsx": "JavaScript", ".kt": "Kotlin", ".lua": "Lua", ".m": "Objective-C", ".md": "Markdown", ".php": "PHP",
    ".pl": "Perl", ".py": "Python", ".pyi": "Python", ".r": "R", ".rb": "Ruby", ".rs": "Rust", ".scala": "Scala",
    ".sh": "shell", ".sql": "SQL", ".swift": "Swift", ".tex": "LaTeX", ".toml": "TOML", ".ts": "TypeScript",
    ".tsx": "TypeScript", ".yaml": "YAML", ".yml": "YAML", ".zig": "Zig",
}  # fmt: skip
"""Suffix of a file to the name of its language."""
