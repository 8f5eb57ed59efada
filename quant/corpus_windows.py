"""One piece of text as one window of tokens: plain, with a gap to fill, or as a question and its answer.

Owns where a gap is cut and what a question is made of; the prompts themselves are `prompts`'. It chooses no files.
Invariant: a window starts with its only BOS, has at most as many ids as asked for, and depends on its text and its
random source alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from cg_local.prompts import chat_prompt, infill_prompt
from cg_local.quant.corpus_files import TextFile
from cg_local.tokenizer import Tokenizer

Kind = Literal["code", "fim", "prose", "chat"]

GAPS = {"whole_line": 0.2, "line_rest": 0.15, "block": 0.35, "several_lines": 0.2, "characters": 0.1}
"""How often a gap is what. The kinds are those that nano's training cuts (`cg_local.training.fim`); CodeGemma's are not
published. Longer ones are more frequent here, because what is scored is the middle and what is computed the window."""

PATH_RATE = 0.7
"""Share of gaps whose prompt names the path, as in that recipe."""

SEVERAL_LINES = (2, 8)
MAX_BLOCK_LINES = 24
ATTEMPTS = 8
MIN_COMMENT_LETTERS = 40
MAX_ANSWER_LINES = 40

PYTHON_FUNCTION = re.compile(
    r"^([ \t]*)(?:async )?(?:def|class) \w[^\n]*(?:\n[^\n]*\)[^\n]*)?:\n[ \t]+[rRuU]?(\"\"\"|''')(.+?)\2", re.M | re.S
)
COMMENT_BLOCK = re.compile(r"^[ \t]*(?:/\*.+?\*/[ \t]*\n|(?:(?://|#)[^\n]*\n){2,})", re.M | re.S)
COMMENT_MARKS = re.compile(r"^[ \t]*(?:/\*+|\*+/|\*|//+|#+)[ \t]?|[ \t]*\*+/[ \t]*$", re.M)


@dataclass(frozen=True)
class Window:
    """A sequence of tokens that a model computes at once.

    Attributes:
        token_ids: BOS first.
        kind: "code", "fim", "prose" or "chat".
        source: name of the file and the line where the text begins.
        scored_from: index of the first token whose prediction an evaluation scores: 1, the middle's or the answer's.
    """

    token_ids: tuple[int, ...]
    kind: Kind
    source: str
    scored_from: int

    @property
    def num_scored(self) -> int:
        """Tokens whose prediction is scored."""
        return len(self.token_ids) - self.scored_from


@dataclass(frozen=True)
class Excerpt:
    """A run of whole lines of a file.

    Attributes:
        file: where it stands.
        line: number of its first line, from 1.
        text: the lines.
    """

    file: TextFile
    line: int
    text: str

    @property
    def source(self) -> str:
        """Where it stands: "abc.py:120"."""
        return f"{self.file.name}:{self.line}"


def plain_window(tokenizer: Tokenizer, excerpt: Excerpt, kind: Kind, window_tokens: int) -> Window:
    """Return BOS and the start of a text; every token of it is scored."""
    token_ids = tokenizer.encode(excerpt.text)[: window_tokens - 1]
    return Window((tokenizer.bos_id, *token_ids), kind, excerpt.source, 1)


def fim_window(tokenizer: Tokenizer, excerpt: Excerpt, window_tokens: int, rng: random.Random) -> Window:
    """Cut a gap into a text and return its prompt with the middle; the middle and what ends it are scored.

    Half of the prompts have the suffix first. A middle longer than half of the window is cut and then has no end.
    """
    start, stop = choose_gap(excerpt.text, rng)
    middle = tokenizer.encode(excerpt.text[start:stop])
    is_whole = len(middle) < window_tokens // 2
    middle = [*middle, tokenizer.file_separator_id] if is_whole else middle[: window_tokens // 2]
    prompt = infill_prompt(
        tokenizer,
        excerpt.text[:start],
        excerpt.text[stop:],
        path=excerpt.file.name if rng.random() < PATH_RATE else None,
        order="psm" if rng.random() < 0.5 else "spm",
        max_prompt_tokens=window_tokens - len(middle),
    )
    return Window((*prompt.token_ids, *middle), "fim", excerpt.source, len(prompt.token_ids))


def chat_window(tokenizer: Tokenizer, excerpt: Excerpt, window_tokens: int, rng: random.Random) -> Window | None:
    """Return a question and its answer in the product's template; the answer and its end are scored.

    A comment and the code behind it are a question in one of two ways: what does this code do, and write it.

    Returns:
        The window; None where the text has no commented code, or question and answer do not fit.
    """
    found = commented_code(excerpt)
    if found is None:
        return None
    comment, code = found
    fenced = f"```{excerpt.file.language}\n{code.rstrip()}\n```"
    if rng.random() < 0.5:
        question, answer = f"Write this in {excerpt.file.language}:\n\n{comment}", fenced
    else:
        question, answer = f"What does this code do?\n\n{fenced}", comment
    answer_ids = [*tokenizer.encode(answer), tokenizer.end_of_turn_id]
    messages = [{"role": "user", "content": question}]
    prompt_ids = chat_prompt(tokenizer, messages, max_prompt_tokens=1 << 30).token_ids
    if len(prompt_ids) + len(answer_ids) > window_tokens:
        return None
    return Window((*prompt_ids, *answer_ids), "chat", excerpt.source, len(prompt_ids))


def choose_gap(text: str, rng: random.Random) -> tuple[int, int]:
    """Return the start and end, in characters, of a gap in a text of at least one line; see GAPS."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    starts = starts if starts[-1] == len(text) else [*starts, len(text)]
    lines = [text[start:stop] for start, stop in pairwise(starts)]
    kind = rng.choices(tuple(GAPS), tuple(GAPS.values()))[0]
    if kind == "characters":
        start = int(rng.random() * len(text))
        return start, start + 1 + int(rng.random() * (len(text) - start) / 4)
    first = _block_line(lines, rng) if kind == "block" else _visible_line(lines, rng)
    indent = len(lines[first]) - len(lines[first].lstrip())
    if kind == "whole_line":
        return starts[first], starts[first + 1]
    end = starts[first + 1] - lines[first].endswith("\n")
    if kind == "line_rest":
        return starts[first] + indent + int(rng.random() * (len(lines[first].rstrip()) - indent)), end
    if kind == "several_lines":
        low, high = SEVERAL_LINES
        return starts[first], starts[min(len(lines), first + low + int(rng.random() * (high - low + 1)))]
    after = block_end(lines, first)
    # The block's own newline stays in the suffix, and the gap begins anywhere in its first line.
    stop = starts[after] - lines[after - 1].endswith("\n")
    return starts[first] + int(rng.random() * (len(lines[first].rstrip()) + 1)), stop


def block_end(lines: Sequence[str], first: int) -> int:
    """Return the line behind the block that a line opens: behind it and all that is indented further, to a limit."""
    depth, last = _depth(lines[first]), first + 1
    for after in range(first + 1, min(len(lines), first + MAX_BLOCK_LINES)):
        if lines[after].strip():
            if _depth(lines[after]) <= depth:
                break
            last = after + 1
    # A closing bracket at the block's own depth belongs to it.
    if first + 1 < last < len(lines) and re.match(r"\s*[)\]}]", lines[last]):
        last += 1
    return last


def commented_code(excerpt: Excerpt) -> tuple[str, str] | None:
    """Return the first comment of some length in a text and the code that it describes, without the comment."""
    pairs = _documented_functions if excerpt.file.language == "python" else _commented_blocks
    return next((found for found in pairs(excerpt.text) if _is_question(*found)), None)


def _documented_functions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the docstring of each function or class, and its code without."""
    for match in PYTHON_FUNCTION.finditer(text):
        lines = text[match.start() :].split("\n")
        num_head = text[match.start() : match.end()].count("\n") + 1
        depth = _depth(match[1])
        behind = lines[num_head:]
        num_body = next((i for i, line in enumerate(behind) if line.strip() and _depth(line) <= depth), len(behind))
        head = text[match.start() : match.start(2)].rstrip()
        yield _unindented(match[3]), "\n".join([head, *behind[:num_body]])


def _commented_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield each comment that fills lines, and the lines below it up to an empty one."""
    for match in COMMENT_BLOCK.finditer(text):
        yield _unindented(COMMENT_MARKS.sub("", match[0])), text[match.end() :].split("\n\n")[0]


def _is_question(comment: str, code: str) -> bool:
    """Whether a comment says enough to ask by it, and the code is enough and not too long to be an answer."""
    num_lines = code.strip().count("\n") + 1
    return sum(map(str.isalpha, comment)) >= MIN_COMMENT_LETTERS and 2 <= num_lines <= MAX_ANSWER_LINES


def _visible_line(lines: list[str], rng: random.Random) -> int:
    """Draw a line; a blank one as a gap says little, and a few draws nearly always find another."""
    for _ in range(ATTEMPTS):
        line = int(rng.random() * len(lines))
        if lines[line].strip():
            return line
    return next((i for i, text in enumerate(lines) if text.strip()), 0)


def _block_line(lines: list[str], rng: random.Random) -> int:
    """Draw a line that opens a block; any line where none does."""
    openers = [i for i, line in enumerate(lines[:-1]) if line.strip() and _depth(lines[i + 1]) > _depth(line)]
    return openers[int(rng.random() * len(openers))] if openers else _visible_line(lines, rng)


def _depth(line: str) -> int:
    """Return how far a line is indented, in columns."""
    return len(line.expandtabs()) - len(line.expandtabs().lstrip())


def _unindented(text: str) -> str:
    """Return a comment's lines without the indentation they have in the source."""
    return "\n".join(line.strip() for line in text.strip().split("\n"))
