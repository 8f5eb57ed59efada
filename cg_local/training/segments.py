"""Cuts source files into pieces that fit a training sequence.

Owns the outline of a file (lines, their token counts, statements) and the three ways to cut it. It knows no FIM.
Invariant: a piece consists of whole lines of its file, with at most the file's import header before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cg_local.training.fim import Encode
from cg_local.training.structure import split_lines, structure_of

MAX_HEADER_TOKENS = 90
"""Import headers above this are not repeated before definitions: they would crowd out the definition."""

MAX_BLOCK_SHARE = 0.7
"""Largest middle, as a share of the piece's lines, that counts as a block inside it."""


@dataclass(frozen=True)
class Outline:
    """What is known about one file.

    Attributes:
        package: name of the distribution.
        path: path inside it.
        lines: lines with their newline.
        token_offsets: int32 [num_lines + 1], number of tokens before each line, lines encoded one by one.
        units: (first, last + 1) lines of definitions and of the statements between them, in large classes of members;
            they tile the file.
        blocks: int32 [num_blocks, 2], (first, last + 1) lines of every statement and body in the file.
        header: (first, last + 1) lines of the leading imports; (0, 0) where there are none.
        group: number of the list of `import_graph.reading_order` in which the file stands; neighbours in the list of
            all outlines that have the same package and group may share a document.
    """

    package: str
    path: str
    lines: list[str]
    token_offsets: np.ndarray
    units: list[tuple[int, int]]
    blocks: np.ndarray
    header: tuple[int, int]
    group: int = 0

    def num_tokens(self, first: int, after: int) -> int:
        """Tokens of the lines from `first` to before `after`."""
        return int(self.token_offsets[after] - self.token_offsets[first])


@dataclass(frozen=True)
class Segment:
    """A piece of a file: its text and the statement blocks inside it, in line numbers of the piece."""

    path: str
    text: str
    blocks: list[tuple[int, int]]


def outline(package: str, path: str, text: str, encode: Encode, max_unit_tokens: int, group: int = 0) -> Outline:
    """Parse a file once.

    Args:
        package: name of the distribution or repository.
        path: path inside it.
        text: source; Python must parse.
        encode: text to ids.
        max_unit_tokens: definitions above this are cut into members.
        group: see `Outline`.
    """
    lines = split_lines(text)
    offsets = np.concatenate([[0], np.cumsum([len(encode(line)) for line in lines])]).astype(np.int32)
    found = structure_of(path, lines, offsets, max_unit_tokens)
    starts = sorted({0, *(start for start in found.starts if start < len(lines))})
    units = list(zip(starts, [*starts[1:], len(lines)], strict=True))
    blocks = np.array(sorted(set(found.blocks)), np.int32).reshape(-1, 2)
    header = found.header
    if offsets[header[1]] - offsets[header[0]] > MAX_HEADER_TOKENS:
        header = (0, 0)
    return Outline(package, path, lines, offsets, [unit for unit in units if unit[0] < unit[1]], blocks, header, group)


def cut(file: Outline, max_tokens: int, rng: np.random.Generator) -> Iterator[Segment]:
    """Cut a file into pieces in a way drawn at random: whole, by definition, by packed units, or by line windows.

    Args:
        file: the outline.
        max_tokens: upper bound of a piece, import header included; a single longer line is left out.
        rng: random source.

    Yields:
        The pieces in order. Together they hold every line of the file except over-long ones.
    """
    if file.num_tokens(0, len(file.lines)) <= max_tokens and rng.random() < 0.7:
        yield make_segment(file, 0, len(file.lines), with_header=False)
        return
    style = rng.choice(3, p=[0.5, 0.3, 0.2])
    has_header = style == 0 and rng.random() < 0.6
    room = max_tokens - (file.num_tokens(*file.header) + 2 if has_header else 0)
    target = (48, int(max_tokens * rng.uniform(0.4, 1.0)), int(max_tokens * rng.uniform(0.3, 1.0)))[style]
    pieces = [(i, i + 1) for i in range(len(file.lines))] if style == 2 else file.units
    for first, after in merge(file, pieces, min(target, room), room, rng):
        yield make_segment(file, first, after, with_header=has_header)


def merge(
    file: Outline, pieces: list[tuple[int, int]], target: int, limit: int, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Join consecutive pieces until they reach `target` tokens, never above `limit`; cut larger pieces at lines."""
    first = after = 0
    for start, end in pieces:
        if file.num_tokens(first, end) > limit or file.num_tokens(first, after) >= target:
            if after > first:
                yield first, after
            first = start
        after = end
        if file.num_tokens(first, after) > limit:
            lines = [(i, i + 1) for i in range(first, after)]
            if len(lines) > 1:
                yield from merge(file, lines, int(limit * rng.uniform(0.5, 1.0)), limit, rng)
            first = after
    if after > first and file.num_tokens(first, after) <= limit:
        yield first, after


def make_segment(file: Outline, first: int, after: int, *, with_header: bool) -> Segment:
    """The piece of lines `first` to before `after` without outer blank lines, with the imports before it if wanted."""
    while first < after and not file.lines[first].strip():
        first += 1
    while first < after and not file.lines[after - 1].strip():
        after -= 1
    head: list[str] = []
    if with_header and first >= file.header[1]:
        head = [*file.lines[file.header[0] : file.header[1]], "\n", "\n"] if file.header[1] else []
    starts, ends = file.blocks[:, 0], file.blocks[:, 1]
    # A block that is nearly the whole piece leaves nothing to fill in between.
    is_inside = (starts >= first) & (ends <= after) & (ends - starts <= max(1, MAX_BLOCK_SHARE * (after - first)))
    blocks = file.blocks[is_inside] + (len(head) - first)
    return Segment(
        file.path, "".join(head + file.lines[first:after]), [(int(start), int(end)) for start, end in blocks]
    )
