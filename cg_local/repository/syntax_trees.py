"""Walking the trees of tree-sitter.

Owns the order of the walk. Which package holds a grammar is `cg_local.grammars`'; what the trees mean is the callers'.
Invariant: a tree is walked without recursion, so that no depth of nesting ends the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node


def descendants(node: Node) -> Iterator[Node]:
    """Every named node below `node`, parents before children, in the order of the text."""
    waiting = list(reversed(node.named_children))
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(reversed(found.named_children))
