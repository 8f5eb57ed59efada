"""Fill-in-the-middle documents: where to cut a text, and the token ids of the cut.

Owns the choice of the middle and the layout of control ids. It knows neither files nor batches.
Invariant: prefix + middle + suffix is the text, byte for byte, and control ids come only from this file's layout, never
from encoding text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EOS_ID, BOS_ID = 1, 2
PREFIX_ID, MIDDLE_ID, SUFFIX_ID, SEPARATOR_ID = 67, 68, 69, 70
"""CodeGemma's control ids; note that middle comes before suffix. Source: google/codegemma-2b tokenizer_config.json."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class FimRecipe:
    """How often which document is made; every field is a probability from 0 to 1.

    Attributes:
        fim_rate: share of documents that are split. CodeGemma 1.1 2B: 0.9 (arXiv 2406.11409, section on training).
        spm_rate: share of split documents in the order suffix, prefix, middle. CodeGemma: 0.5 (model card).
        path_rate: share of documents that begin with their path and a newline.
        eos_rate: share of documents with <eos> behind the last <|file_separator|>.
        whole_line: one line with its newline; the prefix ends with a newline.
        line_rest: from a column to the end of its line; the suffix begins with a newline.
        statements: whole statements or bodies found by Python's parser.
        to_boundary: from anywhere in a line to the end of a statement or body around it; the suffix begins on a new
            line, at a syntactic boundary.
        several_lines: two to eight whole lines.
        characters: a span between any two characters.
    """

    fim_rate: float = 0.9
    spm_rate: float = 0.5
    path_rate: float = 0.7
    eos_rate: float = 0.5
    whole_line: float = 0.35
    line_rest: float = 0.20
    statements: float = 0.15
    to_boundary: float = 0.10
    several_lines: float = 0.10
    characters: float = 0.10


@dataclass(frozen=True)
class Split:
    """A text in three parts; their concatenation in this order is the text."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Document:
    """Token ids of one file's share of a training document.

    Attributes:
        token_ids: without <bos>; ends with <|file_separator|>.
        middle_start: index of the first token behind <|fim_middle|>, or len(token_ids) where the file is not split.
    """

    token_ids: list[int]
    middle_start: int


def choose_split(text: str, blocks: Sequence[tuple[int, int]], recipe: FimRecipe, rng: np.random.Generator) -> Split:
    """Cut `text` at a place drawn from the recipe's mixture.

    Args:
        text: at least one character.
        blocks: (first, last + 1) line numbers, from 0, of statements and bodies inside the text; may be empty.
        recipe: weights of the six kinds.
        rng: random source.

    Returns:
        The parts. The middle may be empty only for the kind `line_rest` on an empty rest.
    """
    line_starts = [0] + [i + 1 for i, char in enumerate(text) if char == "\n"]
    if line_starts[-1] != len(text):
        line_starts.append(len(text))
    num_lines = len(line_starts) - 1
    kinds = ("whole_line", "line_rest", "statements", "to_boundary", "several_lines", "characters")
    weights = np.array([getattr(recipe, kind) for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    if kind in ("statements", "to_boundary") and not blocks:
        kind = "several_lines"
    if kind == "characters":
        start, end = sorted(rng.integers(0, len(text) + 1, 2).tolist())
    elif kind == "statements":
        first, after = blocks[int(rng.integers(len(blocks)))]
        start, end = line_starts[first], line_starts[after]
    elif kind == "to_boundary":
        start, end = choose_boundary(text, line_starts, blocks, rng)
    elif kind == "several_lines":
        first = int(rng.integers(num_lines))
        start, end = line_starts[first], line_starts[min(num_lines, first + int(rng.integers(2, 9)))]
    else:
        start, end = choose_line_span(text, line_starts, kind == "whole_line", rng)
    return Split(text[:start], text[start:end], text[end:])


def choose_boundary(
    text: str, line_starts: list[int], blocks: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[int, int]:
    """A span from anywhere inside a block to the block's end, its last newline left to the suffix.

    Args:
        text: the text.
        line_starts: offset of each line, and the text's length as last entry.
        blocks: as in `choose_split`, at least one.
        rng: random source.

    Returns:
        Start and end offsets.
    """
    first, after = blocks[int(rng.integers(len(blocks)))]
    start, end = line_starts[first], line_starts[after]
    end -= text[start:end].endswith("\n")
    indent = end - start - len(text[start:end].lstrip())
    return int(rng.integers(start + indent, end + 1)), end


def choose_line_span(text: str, line_starts: list[int], whole: bool, rng: np.random.Generator) -> tuple[int, int]:
    """The span of one non-blank line, or of its rest behind a random column.

    Args:
        text: the text.
        line_starts: offset of each line, and the text's length as last entry.
        whole: True: the line including its newline. False: from a column to before the newline; the column is anywhere
            from the first visible character to the end of the line.
        rng: random source.

    Returns:
        Start and end offsets.
    """
    for _ in range(8):  # blank lines teach little as a middle; eight draws nearly always find another
        line = int(rng.integers(len(line_starts) - 1))
        start, end = line_starts[line], line_starts[line + 1]
        if text[start:end].strip():
            break
    if whole:
        return start, end
    end -= text[start:end].endswith("\n")
    indent = end - start - len(text[start:end].lstrip())
    return int(rng.integers(start + indent, end + 1)), end


def control_free(encode: Encode, text: str) -> list[int]:
    """Encode text so that spelled-out control pieces stay text.

    Args:
        encode: text to ids; its model may hold control pieces as user-defined symbols, which match inside text.
        text: any text.

    Returns:
        Ids without 4..107: where a reserved piece is spelled out, its first character is encoded apart from the rest.
    """
    token_ids = encode(text)
    if all(token_id < 4 or token_id > 107 for token_id in token_ids):
        return token_ids
    # Every reserved piece begins with one of the two marks; apart from it, the rest of the name is ordinary text.
    mark = "<" if "<" in text else "["
    first, *rest = text.split(mark)
    token_ids = control_free(encode, first)
    for part in rest:
        token_ids += encode(mark) + control_free(encode, part)
    return token_ids


def fim_document(encode: Encode, path: str, split: Split, is_spm: bool) -> Document:
    """Lay out a split file by ids.

    Args:
        encode: text to ids.
        path: path line without newline; empty for none.
        split: the parts.
        is_spm: suffix first instead of prefix first.

    Returns:
        PSM: path, 67, prefix, 69, suffix, 68, middle, 70. SPM: path, 69, suffix, 67, prefix, 68, middle, 70.

    Source: arXiv 2406.11409, figures 2 and 4, for PSM. The SPM order of sentinels is not published; this is the order
    that the sample output on the model card of google/codegemma-7b begins with.
    """
    head = control_free(encode, path + "\n") if path else []
    prefix = [PREFIX_ID, *control_free(encode, split.prefix)]
    suffix = [SUFFIX_ID, *control_free(encode, split.suffix)]
    body = suffix + prefix if is_spm else prefix + suffix
    before = [*head, *body, MIDDLE_ID]
    return Document([*before, *control_free(encode, split.middle), SEPARATOR_ID], len(before))


def plain_document(encode: Encode, path: str, text: str) -> Document:
    """Lay out a file that is not split: path, text, 70."""
    token_ids = [*control_free(encode, f"{path}\n{text}" if path else text), SEPARATOR_ID]
    return Document(token_ids, len(token_ids))


def draw_document(
    encode: Encode,
    path: str,
    text: str,
    blocks: Sequence[tuple[int, int]],
    *,
    recipe: FimRecipe,
    rng: np.random.Generator,
) -> Document:
    """One file's document with every choice drawn from the recipe.

    Args:
        encode: text to ids.
        path: the file's path, used in a share of documents.
        text: the file or a part of it.
        blocks: as in `choose_split`.
        recipe: probabilities.
        rng: random source.
    """
    path = path if rng.random() < recipe.path_rate else ""
    if rng.random() >= recipe.fim_rate:
        return plain_document(encode, path, text)
    split = choose_split(text, blocks, recipe, rng)
    return fim_document(encode, path, split, is_spm=bool(rng.random() < recipe.spm_rate))
