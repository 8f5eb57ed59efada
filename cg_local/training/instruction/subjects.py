"""Functions to talk about: what a question shows and an answer changes.

Owns the facts of one function (source, summary, examples) and edits that keep its meaning: docstring, type hints, new
names. It asks no questions. Invariant: every edit gives source that parses.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """A function, or another short piece of code.

    Attributes:
        name: of the function or class; "" for loose statements.
        source: the code, without a docstring and without a newline at the end.
        summary: what it does, in the infinitive without a full stop ("return the sum of a list"); None if unknown.
        calls: examples, each the text of a call's arguments and the text of its result.
        types: type of each argument; empty if unknown.
        returns: type of the result; "" if unknown.
    """

    name: str
    source: str
    summary: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    returns: str = ""

    @property
    def tree(self) -> ast.Module:
        """The syntax tree of the source."""
        return ast.parse(self.source)

    @property
    def function(self) -> ast.FunctionDef | None:
        """The first function at the top level, or None."""
        return next((node for node in self.tree.body if isinstance(node, ast.FunctionDef)), None)


def third_person(summary: str) -> str:
    """Turn "return the sum" into "returns the sum"."""
    verb, _, rest = summary.partition(" ")
    if verb.endswith(("s", "sh", "ch", "x")):
        verb += "es"
    elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
        verb = verb[:-1] + "ies"
    else:
        verb += "s"
    return f"{verb} {rest}".strip()


def sentence(text: str) -> str:
    """Give a text a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def with_docstring(source: str, text: str) -> str:
    """Put a one-line docstring into the first function or class of `source`.

    Args:
        source: code whose first definition has its body on lines of its own.
        text: the docstring, one line.
    """
    node = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    lines = source.split("\n")
    first: ast.stmt | ast.expr = node.body[0]
    if isinstance(first, ast.FunctionDef) and first.decorator_list:
        first = first.decorator_list[0]
    indent = lines[first.lineno - 1][: first.col_offset]
    lines.insert(first.lineno - 1, f'{indent}"""{text}"""')
    return "\n".join(lines)


def with_type_hints(subject: Subject) -> str:
    """The source with annotations on the arguments and the result."""
    node = subject.function
    assert node is not None
    lines = subject.source.split("\n")
    types = dict(subject.types)
    arguments = ", ".join(f"{arg.arg}: {types[arg.arg]}" for arg in node.args.args)
    lines[node.lineno - 1] = f"def {node.name}({arguments}) -> {subject.returns}:"
    return "\n".join(lines)


def rename(source: str, old: str, new: str) -> str:
    """Replace a name wherever it is used as a variable, an argument or a function, and not as an attribute.

    Args:
        source: code without strings that hold replacement fields with `old`.
        old: the name.
        new: what it becomes; a name that does not occur in `source`.
    """
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        is_attribute = index > 0 and tokens[index - 1].string == "."
        if token.type == tokenize.NAME and token.string == old and not is_attribute:
            row, column = token.start[0] - 1, token.start[1]
            lines[row] = lines[row][:column] + new + lines[row][column + len(old) :]
    return "\n".join(lines)


def renamable(source: str) -> list[str]:
    """Names that can be replaced everywhere by `rename`: arguments, local variables, and functions.

    A name that is also a keyword argument, an attribute or part of a string is left out: replacing it, or not replacing
    it, could change what the code means.
    """
    tree = ast.parse(source)
    names = dict.fromkeys(
        [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        + [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
        + [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    )
    barred = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    barred |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    has_fields = any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))
    return [
        name
        for name in names
        if name not in barred
        and name not in ("self", "cls", "_")
        and not keyword.iskeyword(name)
        and not has_fields
        and not any(name in text for text in texts)
    ]
