"""What a syntax tree says about a gap: whether it lies in a comment, and whether a construct is complete.

This file owns the questions to tree-sitter. It decides no stop. Invariant: without a grammar, and for text that a
grammar cannot read, the answer is None, and the scan of brackets and words answers instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cg_local.grammars import find_parser

if TYPE_CHECKING:
    from tree_sitter import Node

# Characters parsed on each side of the gap: enough for an exact tree near it, and a parse of milliseconds.
_PARSED_CHARS = 8_000
# Node types, by a part of their names, that answer where a gap lies; an interpolation is code within a string.
_CODE_PARTS = ("interpolation", "substitution", "expansion")
_STRING_PARTS = ("string", "heredoc", "char_literal", "character_literal", "block_scalar", "quote_scalar", "regex")
_OPENING = {"php": "<?php\n"}


def place_of_gap(language: str, prefix: str, suffix: str) -> str | None:
    """Say where a gap lies.

    Args:
        language: a name of `languages.LANGUAGES`.
        prefix: text before the gap.
        suffix: text after it.

    Returns:
        "comment", "string" or "code"; None where there is no grammar or the tree is broken at the gap.
    """
    parser = find_parser(language)
    if parser is None:
        return None
    near = _near(prefix)
    data = near.encode("utf-8", "replace")
    start = len(data)
    opening = b"" if "<?" in near else _OPENING.get(language, "").encode()
    start += len(opening)
    tree = parser.parse(opening + data + suffix[:_PARSED_CHARS].encode("utf-8", "replace"))
    is_line_end = suffix[:1] in ("", "\n")
    for node in _around(tree.root_node, start):
        place = _place(node, start, is_line_end, opening + data)
        if place == "comment" and _follows_error(node):
            return None
        if place is not None:
            return place
    leaf = tree.root_node.descendant_for_byte_range(max(start - 1, 0), start)
    return None if leaf is None or leaf.is_error or leaf.type == "ERROR" else "code"


def _near(prefix: str) -> str:
    """The end of the prefix, from a line start on."""
    if len(prefix) <= _PARSED_CHARS:
        return prefix
    start = prefix.find("\n", len(prefix) - _PARSED_CHARS) + 1
    return prefix[start:]


def _around(root: Node, position: int) -> list[Node]:
    """The nodes that hold the byte before a position, the innermost first."""
    node = root.descendant_for_byte_range(max(position - 1, 0), position) if position else None
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return found


def _place(node: Node, position: int, is_line_end: bool, data: bytes) -> str | None:
    is_inside = node.start_byte < position < node.end_byte
    if "comment" in node.type:
        closed = data[node.start_byte : position].rstrip().endswith((b"*/", b"-->"))
        return "comment" if is_inside or (is_line_end and not closed and node.end_byte >= position) else None
    if any(part in node.type for part in _CODE_PARTS):
        return "code" if is_inside else None
    return "string" if is_inside and any(part in node.type for part in _STRING_PARTS) else None


def _follows_error(comment: Node) -> bool:
    """Whether the tree is broken on the comment's line before it: its mark may then stand in an unclosed string."""
    before = comment.prev_sibling
    return before is not None and before.has_error and before.end_point[0] == comment.start_point[0]


def is_complete(language: str, code: str) -> bool | None:
    """Whether a piece of code is whole statements.

    Args:
        language: a name of `languages.LANGUAGES`.
        code: source that starts at the beginning of a statement.

    Returns:
        None where there is no grammar.
    """
    parser = find_parser(language)
    if parser is None:
        return None
    return not parser.parse((_OPENING.get(language, "") + code).encode("utf-8", "replace")).root_node.has_error
