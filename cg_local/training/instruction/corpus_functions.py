"""Short functions of a prepared corpus, as subjects.

Owns the choice: which functions are short and plain enough to talk about. It reads what `prepare` wrote and executes
nothing. Invariant: a subject's source is a piece of its file, apart from the docstring.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from cg_local.errors import TrainingError
from cg_local.training.instruction.subjects import Subject

MIN_LINES, MAX_LINES, MAX_CHARS, MAX_LINE_CHARS = 3, 10, 360, 88

VERBS = frozenset(
    [
        "return",
        "compute",
        "calculate",
        "get",
        "find",
        "check",
        "convert",
        "create",
        "build",
        "make",
        "count",
        "add",
        "remove",
        "read",
        "write",
        "print",
        "parse",
        "split",
        "join",
        "sort",
        "filter",
        "test",
        "determine",
        "generate",
        "set",
        "load",
        "save",
        "open",
        "merge",
        "replace",
        "compare",
        "apply",
        "update",
        "extract",
        "format",
        "encode",
        "decode",
        "normalize",
        "validate",
        "list",
        "select",
        "insert",
        "delete",
        "reverse",
        "evaluate",
        "yield",
        "iterate",
        "copy",
        "match",
        "wrap",
    ]
)
"""First words of docstrings that are taken for a summary in the infinitive."""


def summary_of(docstring: str) -> str | None:
    """The first line of a docstring as a summary in the infinitive, or None if it does not read like one."""
    line = docstring.strip().split("\n")[0].strip()
    verb = line.split(" ")[0]
    if not line.endswith(".") or len(line) > 80 or verb.lower() not in VERBS or any(mark in line for mark in "`:*{}<>"):
        return None
    return verb.lower() + line[len(verb) : -1]


def doctest_calls(name: str, docstring: str) -> tuple[tuple[str, str], ...]:
    """Calls of `name` in a docstring's examples whose result is a literal."""
    calls = []
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
    except ValueError:
        return ()
    for example in examples:
        source, want = example.source.strip(), example.want.strip()
        if source.startswith(f"{name}(") and source.endswith(")") and "\n" not in source and len(source + want) < 70:
            try:
                ast.literal_eval(want)
                call = ast.parse(source, mode="eval").body
            except (ValueError, SyntaxError):
                continue
            if isinstance(call, ast.Call) and call.end_col_offset == len(source):
                calls.append((source[len(name) + 1 : -1], want))
    return tuple(calls[:3])


def without_docstring(source: str, node: ast.FunctionDef) -> str:
    """The source of a function with its docstring's lines left out."""
    lines = source.split("\n")
    if ast.get_docstring(node):
        first = node.body[0]
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines).rstrip()


def is_plain(source: str, node: ast.FunctionDef) -> bool:
    """Whether a function without its docstring is short and has nothing that needs its file to be understood."""
    lines = source.split("\n")
    return (
        MIN_LINES <= len(lines) <= MAX_LINES
        and len(source) <= MAX_CHARS
        and max(map(len, lines)) <= MAX_LINE_CHARS
        and source.isascii()
        and "\n\n" not in source
        and "#" not in source
        and not node.name.startswith("test")
        and len(node.args.args) <= 4
    )


def subjects_of(text: str) -> Iterator[tuple[Subject, Subject | None]]:
    """The plain top-level functions of a file, and for each with examples the same with its docstring kept."""
    lines = text.split("\n")
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        # ast.get_source_segment would split the whole file anew for each function.
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if len(source) > 4 * MAX_CHARS:
            continue
        try:
            parsed = ast.parse(source).body[0]
            assert isinstance(parsed, ast.FunctionDef)
            docstring, bare = ast.get_docstring(parsed) or "", without_docstring(source, parsed)
            ast.parse(bare)
        except SyntaxError:  # nothing but a docstring, or lines joined by a backslash
            continue
        if is_plain(bare, parsed):
            calls = doctest_calls(parsed.name, docstring)
            shown = Subject(parsed.name, source, None, calls) if calls and len(source) < 2 * MAX_CHARS else None
            yield Subject(parsed.name, bare, summary_of(docstring)), shown


def read_subjects(path: Path, share: float = 1.0) -> tuple[list[Subject], list[Subject]]:
    """Plain functions of a corpus file, each once.

    Args:
        path: `train.jsonl` or `held_out.jsonl`.
        share: of its lines that is read, chosen by their hash; 0..1.

    Returns:
        Functions without docstrings, and functions with docstrings that hold examples.

    Raises:
        TrainingError: the file is missing.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: missing. Make the corpus with cg_local.training.prepare.")
    bare: dict[str, Subject] = {}
    shown: dict[str, Subject] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if int(hashlib.sha256(line.encode()).hexdigest()[:8], 16) >= share * 2**32:
                continue
            for subject, example in subjects_of(json.loads(line)["text"]):
                bare.setdefault(subject.source, subject)
                if example is not None:
                    shown.setdefault(example.source, example)
    return list(bare.values()), list(shown.values())
