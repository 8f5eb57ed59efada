"""The syntactic structure of a file in line numbers: definitions, statements, the import header.

Owns how a syntax tree becomes line spans: Python's by `ast`, other languages' by tree-sitter. Cutting is `segments`'.
Invariant: a block is whole lines, from the first visible character of its first line to the last of its last.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cg_local.grammars import GRAMMARS
from cg_local.languages import language_of
from cg_local.training import grammars
from cg_local.training.imports import STATEMENTS

if TYPE_CHECKING:
    from tree_sitter import Node

Span = tuple[int, int]
"""First line and last line + 1, from 0."""

CLOSERS = re.compile(rb"[\s;,)\]}]*$")
"""What may stand behind a block on its last line: it closes something around the block or ends the statement."""


@dataclass(frozen=True)
class Structure:
    """Line spans of one file.

    Attributes:
        starts: first lines of definitions and of the statements between them, in large ones of their members.
        blocks: every statement, body or other syntax node that fills whole lines.
        header: the leading imports; (0, 0) where there are none.
    """

    starts: list[int]
    blocks: list[Span]
    header: Span


def split_lines(text: str) -> list[str]:
    """Lines with their newline. Only the newline ends a line, as for both parsers; `str.splitlines` knows ten more."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def structure_of(path: str, lines: list[str], offsets: np.ndarray, max_unit_tokens: int) -> Structure:
    """Parse a file.

    Args:
        path: its name decides the language; a language without a grammar has no structure.
        lines: as from `split_lines`.
        offsets: int32 [num_lines + 1], tokens before each line.
        max_unit_tokens: definitions above this are cut into members.

    Returns:
        The structure; an empty one for Python that this interpreter does not parse, for example newer syntax.
    """
    language = language_of(path)
    if language == "python":
        try:
            return python_structure("".join(lines), offsets, max_unit_tokens, len(lines))
        except (SyntaxError, ValueError, RecursionError):
            return Structure([], [], (0, 0))
    if language in GRAMMARS:
        return tree_structure(language, [line.encode() for line in lines], offsets, max_unit_tokens)
    return Structure([], [], (0, 0))


def python_structure(text: str, offsets: np.ndarray, max_unit_tokens: int, num_lines: int) -> Structure:
    """The structure of Python source; see `structure_of`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    starts = list(unit_starts(tree.body, offsets, max_unit_tokens, num_lines))
    blocks = [span for span in statement_blocks(tree) if span[1] <= num_lines]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    header = (imports[0].lineno - 1, imports[-1].end_lineno or 0) if imports else (0, 0)
    return Structure(starts, blocks, header)


def first_line(node: ast.stmt) -> int:
    """Number, from 0, of a statement's first line, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(item.lineno for item in decorators)]) - 1


def unit_starts(body: list[ast.stmt], offsets: np.ndarray, max_tokens: int, num_lines: int) -> Iterator[int]:
    """First lines of definitions and of the statements behind them, and of the members of a class that is too large."""
    was_definition = False
    for node in body:
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_definition or was_definition:
            yield first_line(node)
        if (
            isinstance(node, ast.ClassDef)
            and offsets[min(node.end_lineno or 0, num_lines)] - offsets[first_line(node)] > max_tokens
        ):
            yield from unit_starts(node.body, offsets, max_tokens, num_lines)
        was_definition = is_definition


def statement_blocks(tree: ast.Module) -> Iterator[Span]:
    """Line spans of every statement and of every body of statements below the top level."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                spans = [(first_line(item), item.end_lineno or 0) for item in body]
                yield from spans
                if not isinstance(node, ast.Module):
                    yield spans[0][0], spans[-1][1]


def tree_structure(language: str, lines: list[bytes], offsets: np.ndarray, max_unit_tokens: int) -> Structure:
    """The structure of another language's source; see `structure_of`. No list of statement types is needed: what
    fills whole lines is a statement, a body or a definition in every one of these grammars."""
    root = grammars.parser_of(language).parse(b"".join(lines)).root_node
    starts = list(member_starts(root, lines, offsets, max_unit_tokens))
    nodes = [node for node in grammars.descendants(root) if not node.is_error and not node.has_error]
    blocks = [span for node in nodes if (span := whole_lines(node, lines)) and span != (0, len(lines))]
    types = STATEMENTS.get(language, set())
    imports = [span for node in nodes if node.type in types and (span := whole_lines(node, lines))]
    return Structure(starts, blocks, leading(imports))


def node_span(node: Node) -> Span:
    """The lines on which a node stands; a node that ends with a newline ends on the line before."""
    first, (last, column) = node.start_point[0], node.end_point
    return first, last + (column > 0)


def whole_lines(node: Node, lines: list[bytes]) -> Span | None:
    """The lines of a node, or None where other text than closing marks stands on them."""
    first, after = node_span(node)
    if not first < after <= len(lines) or lines[first][: node.start_point[1]].strip():
        return None
    last, column = node.end_point
    behind = lines[last][column:] if column else b""
    return (first, after) if CLOSERS.match(behind) else None


def member_starts(node: Node, lines: list[bytes], offsets: np.ndarray, max_tokens: int) -> Iterator[int]:
    """First lines of a node's children, comments counted to what follows them; large children by their members."""
    comment: int | None = None
    for child in node.named_children:
        first, after = node_span(child)
        if lines[min(first, len(lines) - 1)][: child.start_point[1]].strip():
            continue  # not the first on its line
        if "comment" in child.type:
            comment = first if comment is None else comment
            continue
        yield first if comment is None else comment
        comment = None
        if offsets[min(after, len(lines))] - offsets[first] > max_tokens:
            yield from member_starts(child, lines, offsets, max_tokens)
            for inner in child.named_children:
                yield from member_starts(inner, lines, offsets, max_tokens)


def leading(imports: list[Span]) -> Span:
    """The imports at the top: up to the first gap of more than two lines."""
    if not imports:
        return 0, 0
    first, after = imports[0]
    for start, end in imports[1:]:
        if start > after + 2:
            break
        after = max(after, end)
    return first, after
