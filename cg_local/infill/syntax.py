"""How languages write comments, strings, brackets and blocks.

This file owns the table of languages and the measuring of indentation. It reads no text beyond one line and decides
nothing. Invariant: every file name has a syntax; an unknown one has brackets and double quotes alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePath

from cg_local.languages import language_of

BLANK = " \t\r\n"
CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
# What an editor types by itself to the right of the cursor; none of it is code that a middle has to lead to.
CLOSERS = ")]}'\"`;:,"


@dataclass(frozen=True)
class Syntax:
    """How a language writes what the trimming has to know.

    Attributes:
        line_comments: what starts a comment up to the end of the line.
        block_comment: what starts and what ends a comment of several lines; ("", "") where there is none.
        quotes: the characters that open and close a string.
        long_quotes: those of them whose strings may go over several lines.
        has_triple_quotes: three quotes open a string over several lines.
        has_lifetimes: a single quote opens a character, or stands before a name.
        hash_needs_blank: a comment's first character stands at a line's start or behind a blank ("a#b" is none).
        loose_closers: closers that need no opener (case patterns, lists in prose).
        opener: matches a line whose block ends with a closing word; None where brackets or indentation say it.
        closing: matches the word that ends such a block, at the start of a line.
        going_on: matches the word that goes on with a construct at its own indentation ("else").
        has_colon_blocks: a line that ends with a colon is followed by a deeper block.
        statement_end: a line that ends with it ends the statement that the gap is in; "" where lines say nothing.
        is_prose: the text is sentences: a blank line ends a paragraph.
        language: its name in `languages.LANGUAGES`; "" for another one.
    """

    line_comments: tuple[str, ...] = ()
    block_comment: tuple[str, str] = ("", "")
    quotes: str = '"'
    long_quotes: str = ""
    has_triple_quotes: bool = False
    has_lifetimes: bool = False
    hash_needs_blank: bool = False
    loose_closers: str = ""
    opener: re.Pattern[str] | None = None
    closing: re.Pattern[str] | None = None
    going_on: re.Pattern[str] | None = None
    has_colon_blocks: bool = False
    statement_end: str = ""
    is_prose: bool = False
    language: str = ""


_ELSE = re.compile(r"(else|catch|finally|while)\b")
_SLASH = Syntax(("//",), ("/*", "*/"), "\"'", going_on=_ELSE)
_TICKED = replace(_SLASH, quotes="\"'`", long_quotes="`")
_TRIPLED = replace(_SLASH, has_triple_quotes=True)
_PYTHON = Syntax(
    ("#",),
    quotes="\"'",
    has_triple_quotes=True,
    has_colon_blocks=True,
    going_on=re.compile(r"(elif|else|except|finally|case)\b"),
)
_RUBY = Syntax(
    ("#",),
    quotes="\"'`",
    long_quotes="\"'",
    hash_needs_blank=True,
    opener=re.compile(
        r"\s*(def|class|module|if|unless|while|until|for|case|begin)\b(?!.*\bend\b)|.*\bdo(\s*\|[^|]*\|)?\s*$"
    ),
    closing=re.compile(r"end\b"),
    going_on=re.compile(r"(elsif|else|rescue|ensure|when|in)\b"),
)
_SHELL = Syntax(
    ("#",),
    quotes="\"'`",
    long_quotes="\"'`",
    hash_needs_blank=True,
    loose_closers=")",
    opener=re.compile(r"\s*(if|for|while|until|case|select)\b(?!.*\b(fi|done|esac)\b)|.*\b(do|then|in)\s*$"),
    closing=re.compile(r"(fi|done|esac)\b"),
    going_on=re.compile(r"(elif|else|then|do)\b"),
)
_LUA = Syntax(
    ("--",),
    ("--[[", "]]"),
    "\"'",
    opener=re.compile(r".*\b(function\b[^)]*\)|then|do|repeat)\s*$"),
    closing=re.compile(r"(end|until)\b"),
    going_on=re.compile(r"(else|elseif)\b"),
)
_SQL = Syntax(("--",), ("/*", "*/"), "\"'", long_quotes="'", statement_end=";")
_HTML = Syntax(
    block_comment=("<!--", "-->"),
    loose_closers=")]}",
    opener=re.compile(r".*<(?!area|br|col|hr|img|input|link|meta|wbr|/|!)([A-Za-z][\w-]*)[^<>]*(?<!/)>\s*$"),
    closing=re.compile(r"</"),
)
_MARKDOWN = Syntax(block_comment=("<!--", "-->"), quotes="`", loose_closers=")]}", is_prose=True)
_YAML = Syntax(("#",), quotes='"', hash_needs_blank=True, has_colon_blocks=True)
_PLAIN = Syntax()

_SYNTAXES = {
    "python": _PYTHON,
    "javascript": _TICKED,
    "typescript": _TICKED,
    "tsx": _TICKED,
    "java": _TRIPLED,
    "c": _SLASH,
    "cpp": _SLASH,
    "csharp": _TRIPLED,
    "go": _TICKED,
    "rust": replace(_SLASH, long_quotes='"', has_lifetimes=True),
    "kotlin": _TRIPLED,
    "ruby": _RUBY,
    "php": replace(_SLASH, line_comments=("//", "#"), long_quotes="\"'"),
    "bash": _SHELL,
    "sql": _SQL,
    "html": _HTML,
    "css": Syntax((), ("/*", "*/"), "\"'"),
    "json": Syntax(("//",), ("/*", "*/")),
    "yaml": _YAML,
    "markdown": _MARKDOWN,
}
# Languages without a grammar here, by the file name's ending without its dot.
_OTHERS = (
    (re.compile("pyx|jl|nim"), _PYTHON),
    (re.compile("zsh|ksh"), _SHELL),
    (re.compile("exs?|cr"), _RUBY),
    (re.compile("pl|r|toml|cmake|mk|tf|conf"), Syntax(("#",), quotes="\"'", hash_needs_blank=True)),
    (re.compile("swift|scala|dart|zig|groovy|proto|glsl|m"), _TRIPLED),
    (re.compile("lua"), _LUA),
    (re.compile("hs|elm"), Syntax(("--",), ("{-", "-}"))),
    (re.compile("vue|svelte|xml|svg"), _HTML),
    (re.compile("markdown|rst|txt|tex"), _MARKDOWN),
)


def syntax_of(path: str | None) -> Syntax:
    """Return the syntax that a file's name stands for; without a name, Python's."""
    language = language_of(path) if path is not None else "python"
    if language is not None:
        return replace(_SYNTAXES[language], language=language)
    suffix = PurePath(path or "").suffix[1:].lower()
    return next((syntax for suffixes, syntax in _OTHERS if suffixes.fullmatch(suffix)), _PLAIN)


def lead_of(line: str) -> str:
    """Return the spaces and tabs that a line starts with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def indentation(line: str) -> int:
    """Indentation in columns, a tab reaching to the next multiple of 8."""
    return len(lead_of(line).expandtabs(8))
