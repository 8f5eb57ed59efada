"""The order in which a repository's files are read: what is imported before what imports it.

Owns the import graph, the breaking of its cycles, its topological order, and the place of files outside of it. How
imports are read is `repository.imports`'.
Invariant: the order depends only on paths and texts; each file stands in it exactly once.

Source: arXiv 2406.11409, section on multi-file packing: dependencies from the imports at the top of each file, matched
with the longest repository paths by suffix; unimportant edges dropped to break cycles; all-pairs shortest paths; a
topological sort whose next unparented node is the nearest to those already sorted, ties in lexicographic order; files
outside of the graph alphabetically, with tests beside what they test. What makes an edge important is not published;
here it is how often the importing file uses the imported names.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import PurePosixPath

from cg_local.languages import language_of
from cg_local.repository.imports import PathIndex, imports_of, shared_folders, word_counts
from cg_local.repository.partners import tested_name
from cg_local.training.grammars import parser_of

Graph = dict[str, dict[str, int]]
"""Importing path to imported path to importance, how often the imported names stand in the importing file."""

UNREACHED = 1 << 30


def import_graph(files: Mapping[str, str]) -> Graph:
    """The graph of a repository.

    Args:
        files: path to text.

    Returns:
        For each file that imports others of the repository, those and the importance of the edge.
    """
    index = PathIndex(files)
    graph: Graph = {}
    for path in sorted(files):
        counts = word_counts(files[path])
        edges: dict[str, int] = defaultdict(int)
        for wanted in imports_of(path, files[path], parser_of):
            if wanted.parts:
                for target in index.find(wanted, path):
                    edges[target] += sum(counts[name] for name in set(wanted.names))
        if edges:
            graph[path] = dict(edges)
    return graph


def without_cycles(graph: Graph) -> Graph:
    """The graph less the least important edges of its cycles.

    Edges are taken up from the most important to the least, ties by path; one that would close a cycle stays out. Thus
    an edge is dropped only for a cycle in which every other edge is at least as important.
    """
    edges = sorted((-weight, path, target) for path, targets in graph.items() for target, weight in targets.items())
    group = strong_components(graph)
    kept: Graph = {}
    for negative, path, target in edges:
        # Only edges within a strongly connected component can lie on a cycle.
        if group[path] != group[target] or not is_connected(kept, target, path):
            kept.setdefault(path, {})[target] = -negative
    return kept


def is_connected(graph: Graph, start: str, end: str) -> bool:
    """Whether a path of edges leads from `start` to `end`."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node == end:
            return True
        waiting += [target for target in graph.get(node, {}) if target not in seen]
        seen.update(graph.get(node, {}))
    return False


def strong_components(graph: Graph) -> dict[str, int]:
    """Number of the strongly connected component of each node (Kosaraju's two passes, without recursion)."""
    nodes = sorted({*graph, *(target for targets in graph.values() for target in targets)})
    reverse: dict[str, list[str]] = defaultdict(list)
    for path, targets in graph.items():
        for target in targets:
            reverse[target].append(path)
    finished: list[str] = []
    seen: set[str] = set()
    for root in nodes:
        waiting = [(root, False)]
        while waiting:
            node, is_done = waiting.pop()
            if is_done:
                finished.append(node)
            elif node not in seen:
                seen.add(node)
                waiting.append((node, True))
                waiting += [(target, False) for target in graph.get(node, {}) if target not in seen]
    component: dict[str, int] = {}
    for number, root in enumerate(reversed(finished)):
        stack = [root]
        while stack:
            node = stack.pop()
            if node not in component:
                component[node] = number
                stack += [path for path in reverse[node] if path not in component]
    return component


def neighbours(graph: Graph) -> dict[str, set[str]]:
    """Each node's neighbours, edges taken in both directions."""
    beside: dict[str, set[str]] = defaultdict(set)
    for path, targets in graph.items():
        for target in targets:
            beside[path].add(target)
            beside[target].add(path)
    return beside


def distances_from(start: str, beside: Mapping[str, set[str]]) -> dict[str, int]:
    """Number of edges on the shortest path from `start` to every node that it is connected with."""
    found, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for other in beside[node]:
            if other not in found:
                found[other] = found[node] + 1
                waiting.append(other)
    return found


def topological_order(graph: Graph) -> list[str]:
    """The nodes of a graph without cycles, imported before importing.

    The next node is, of those whose imports all stand in the order already, the one with the smallest distance to a
    node that does; ties, and the first node, in lexicographic order. The shortest paths of all pairs are found node by
    node, when it enters the order: a table of all would take gigabytes for some thousand files.
    """
    beside = neighbours(graph)
    importers: dict[str, list[str]] = defaultdict(list)
    missing = dict.fromkeys(beside, 0)
    for path, targets in graph.items():
        missing[path] = len(targets)
        for target in targets:
            importers[target].append(path)
    nearest = dict.fromkeys(beside, UNREACHED)
    free = {node for node, count in missing.items() if not count}
    order = []
    while free:
        node = min(free, key=lambda item: (nearest[item], item))
        free.remove(node)
        order.append(node)
        for other, distance in distances_from(node, beside).items():
            nearest[other] = min(nearest[other], distance)
        for path in importers[node]:
            missing[path] -= 1
            if not missing[path]:
                free.add(path)
    return order


def lexical_order(paths: list[str]) -> list[str]:
    """Paths in alphabetic order, each test directly behind the file that it tests, in whatever folder it lies."""
    implementations: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for path in paths:
        if tested_name(path) is None:
            implementations[PurePosixPath(path).stem, language_of(path)].append(path)

    def key(path: str) -> tuple[str, int, str]:
        name = tested_name(path)
        beside = implementations.get((name, language_of(path)), []) if name else []
        if not beside:
            return path, 0, ""
        return min(beside, key=lambda other: (-shared_folders(other, path), other)), 1, path

    return sorted(paths, key=key)


def reading_order(files: Mapping[str, str]) -> list[list[str]]:
    """The files of a repository in the order of training documents.

    Args:
        files: path to text.

    Returns:
        First each connected part of the import graph in topological order, the parts by their first paths; last the
        files that neither import nor are imported, in lexical order. A document may join neighbours within a list.
    """
    graph = without_cycles(import_graph(files))
    beside = neighbours(graph)
    order = topological_order(graph)
    first_of: dict[str, str] = {}
    for path in sorted(order):
        if path not in first_of:
            first_of |= dict.fromkeys(distances_from(path, beside), path)
    parts: dict[str, list[str]] = defaultdict(list)
    for path in order:
        parts[first_of[path]].append(path)
    rest = lexical_order([path for path in files if path not in first_of])
    return [parts[name] for name in sorted(parts)] + ([rest] if rest else [])
