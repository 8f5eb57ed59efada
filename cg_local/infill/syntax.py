"""A scan of brackets, strings, comments and indentation, good enough to see where a gap lies in code.

This file owns what a bracket, a string, a comment and a blank look like in each language. It parses nothing else and
decides nothing. Invariant: the scan reads from left to right, so what it says about a position depends only on the text
up to it; a longer text never changes an earlier finding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath

BLANK = " \t\r\n"
_FILLED = re.compile("[^ \t\r\n]")
CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
# What an editor types by itself to the right of the cursor; none of it is code that a middle has to lead to.
CLOSERS = ")]}'\"`;:,"


@dataclass(frozen=True)
class Syntax:
    """How a language writes comments and strings.

    Attributes:
        line_comment: what starts a comment up to the end of the line; "" where there is none.
        quotes: the characters that open and close a string.
        has_triple_quotes: three quotes open a string over several lines.
        has_block_comments: `/*` opens a comment that `*/` closes.
    """

    line_comment: str
    quotes: str
    has_triple_quotes: bool = False
    has_block_comments: bool = False


_HASH = Syntax("#", "\"'", has_triple_quotes=True)
_SLASH = Syntax("//", "\"'`", has_block_comments=True)
_DASH = Syntax("--", "\"'")
_PLAIN = Syntax("", '"')
# By the file name's suffix, without its dot.
_SYNTAXES = (
    (re.compile("pyi?|pyx|sh|bash|zsh|rb|pl|r|jl|nim|exs?|ya?ml|toml|cmake|mk"), _HASH),
    (re.compile("c|h|cc|cpp|cxx|hpp|cs|java|m?js|jsx|tsx?|go|rs|kts?|swift|scala|dart|php|zig"), _SLASH),
    (re.compile("sql|lua|hs"), _DASH),
)


def syntax_of(path: str | None) -> Syntax:
    """Return the syntax that a file's name stands for; without a name, Python's."""
    suffix = PurePath(path).suffix[1:].lower() if path is not None else "py"
    return next((syntax for suffixes, syntax in _SYNTAXES if suffixes.fullmatch(suffix)), _PLAIN)


@dataclass
class Scan:
    """What a scan of a text found.

    Attributes:
        open_brackets: brackets opened in the text and still open at its end, innermost last.
        unmatched: position and character of each closer whose bracket was opened before the text.
        inner_lines: positions of the line starts that lie within a string or a bracket opened in the text.
        quote: the string or comment that is open at the end, as its opening mark; "" outside of them.
        quote_end: where the mark stands that closes the string that was open before the text; None if there is none.
    """

    open_brackets: list[str] = field(default_factory=list)
    unmatched: list[tuple[int, str]] = field(default_factory=list)
    inner_lines: set[int] = field(default_factory=set)
    quote: str = ""
    quote_end: int | None = None

    def copy(self) -> Scan:
        """Return one that can go on by itself."""
        return Scan(self.open_brackets[:], self.unmatched[:], self.inner_lines.copy(), self.quote, self.quote_end)


_TOKEN = re.compile(r"\\.|\"\"\"|'''|/\*|\*/|//|--|[#\"'`()\[\]{}\n]", re.DOTALL)
_MAX_TOKEN_CHARS = 3


def scan(text: str, syntax: Syntax, quote: str = "") -> Scan:
    """Scan a text for brackets, strings and comments.

    Args:
        text: source code; may start and end anywhere.
        syntax: how its language writes strings and comments.
        quote: the string or comment that the text starts in (`Scan.quote` of the text before it).
    """
    return Scanner(syntax, quote).scan(text)


class Scanner:
    """Scans a text that grows: what has been read is not read again, but for the last characters."""

    def __init__(self, syntax: Syntax, quote: str = "") -> None:
        """Start before the text; the arguments are those of `scan`."""
        self._syntax, self._found = syntax, Scan(quote=quote)
        self._is_in_outer = bool(quote)
        self._position = 0

    def scan(self, text: str) -> Scan:
        """Return what `scan` returns for a text that begins with the text of the call before."""
        # A longer text may make another token of the last two characters: a quote may be the first of three.
        self._read(text, len(text) - _MAX_TOKEN_CHARS + 1)
        ahead = Scanner(self._syntax)
        ahead._found, ahead._is_in_outer, ahead._position = self._found.copy(), self._is_in_outer, self._position
        ahead._read(text, len(text))
        return ahead._found

    def _read(self, text: str, stop: int) -> None:
        """Take the tokens that start before `stop` into account."""
        found, syntax, position = self._found, self._syntax, self._position
        while (match := _TOKEN.search(text, position)) and match.start() < stop:
            token, position = match.group(), match.end()
            if token[0] == "\\":
                if found.quote in ("", syntax.line_comment, "/*"):
                    position = match.start() + 1  # only strings have escapes
                continue
            before = found.quote
            if before:
                found.quote, position = _within(token, before, syntax, match.start(), position)
                if self._is_in_outer and not found.quote:
                    found.quote_end, self._is_in_outer = (None if token == "\n" else match.start()), False
            else:
                position = _outside(token, found, syntax, match.start(), position)
            if token == "\n" and (found.quote or found.open_brackets):
                found.inner_lines.add(match.end())
        self._position = max(position, stop)


def _within(token: str, quote: str, syntax: Syntax, start: int, end: int) -> tuple[str, int]:
    """Return the string or comment that is open after a token within one, and where to go on."""
    if quote == syntax.line_comment:
        return ("" if token == "\n" else quote), end
    if quote == "/*":
        return ("" if token == "*/" else quote), end
    if token == quote:
        return "", end
    if token == "\n":
        return (quote if len(quote) == 3 or quote == "`" else ""), end
    # Three quotes within a one-character string are looked at one by one.
    if len(token) == 3 and len(quote) == 1 and token[0] == quote:
        return "", start + 1
    return quote, (start + 1 if len(token) == 3 else end)


def _outside(token: str, found: Scan, syntax: Syntax, start: int, end: int) -> int:
    """Take a token outside of strings and comments into account; return where to go on."""
    if token in CLOSER_OF:
        found.open_brackets.append(token)
    elif token in ")]}":
        if found.open_brackets:
            found.open_brackets.pop()
        else:
            found.unmatched.append((start, token))
    elif token == syntax.line_comment or (token == "/*" and syntax.has_block_comments):
        found.quote = token
    elif len(token) == 3 and token[0] in syntax.quotes:
        found.quote = token if syntax.has_triple_quotes else token[0]
        return end if syntax.has_triple_quotes else start + 1
    elif token in syntax.quotes:
        found.quote = token
    return end


def indentation(line: str) -> int:
    """Indentation in columns, a tab reaching to the next multiple of 8."""
    return len((line[: len(line) - len(line.lstrip(" \t"))]).expandtabs(8))


def first_indentation(text: str, default: int) -> int:
    """Indentation of the first line that is not blank, or the default."""
    filled = _FILLED.search(text)
    return indentation(text[text.rfind("\n", 0, filled.start()) + 1 : filled.end()]) if filled else default


def opens_block(line: str, syntax: Syntax) -> bool:
    """Whether the next lines belong to this one: it ends with a colon, or a bracket of it is still open."""
    code = line.split(syntax.line_comment)[0] if syntax.line_comment else line
    return code.rstrip(BLANK).endswith(":") or bool(scan(line, syntax).open_brackets)
