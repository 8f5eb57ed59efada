"""Describes a short function in plain words, from its syntax tree.

Owns the sentences. It looks at the code alone and knows nothing of what a function is for.
Invariant: every sentence states what the code does, statement by statement, in order; nothing is guessed.
"""

from __future__ import annotations

import ast

MAX_STATEMENTS = 8
"""Functions with more statements than this are not described: nobody reads a list that long."""

ADDING = {
    ast.Add: "adds {value} to {target}",
    ast.Sub: "subtracts {value} from {target}",
    ast.Mult: "multiplies {target} by {value}",
    ast.Div: "divides {target} by {value}",
}


def enumerate_words(words: list[str]) -> str:
    """Join words as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


class Describer:
    """Puts the statements of one source into words."""

    def __init__(self, source: str) -> None:
        """Take the source that the nodes come from: it is quoted as it is written."""
        self.source = source

    def quote(self, node: ast.AST) -> str:
        """The source of a node in back quotes."""
        return f"`{ast.get_source_segment(self.source, node)}`"

    def action(self, node: ast.stmt) -> str | None:
        """What a simple statement does, in the third person; None for statements that are not described."""
        if isinstance(node, ast.Return):
            return f"returns {self.quote(node.value)}" if node.value else "returns nothing"
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            return f"sets {self.quote(node.targets[0])} to {self.quote(node.value)}"
        if isinstance(node, ast.AugAssign) and type(node.op) in ADDING:
            return ADDING[type(node.op)].format(value=self.quote(node.value), target=self.quote(node.target))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return f"calls {self.quote(node.value)}"
        if isinstance(node, ast.Raise) and node.exc:
            return f"raises {self.quote(node.exc)}"
        return None

    def describe(self, node: ast.stmt) -> str | None:
        """One sentence without its full stop about a statement, or None."""
        simple = self.action(node)
        if simple:
            return f"It {simple}"
        if isinstance(node, ast.For) and not node.orelse:
            inner = self.block(node.body)
            return inner and f"For each {self.quote(node.target)} in {self.quote(node.iter)}, {inner}"
        if isinstance(node, ast.While) and not node.orelse:
            inner = self.block(node.body)
            return inner and f"While {self.quote(node.test)}, {inner}"
        if isinstance(node, ast.If):
            inner, other = self.block(node.body), self.block(node.orelse) if node.orelse else ""
            if inner is None or other is None:
                return None
            return f"If {self.quote(node.test)}, {inner}" + (f"; otherwise {other}" if other else "")
        if isinstance(node, ast.With) and len(node.items) == 1 and node.items[0].optional_vars:
            item, inner = node.items[0], self.block(node.body)
            opened, name = self.quote(item.context_expr), self.quote(node.items[0].optional_vars)
            return inner and f"With {opened} as {name}, {inner}"
        return None

    def block(self, body: list[ast.stmt]) -> str | None:
        """The description of a nested block, as the end of a sentence."""
        found = [self.action(node) for node in body]
        if None not in found:
            return "it " + enumerate_words([text for text in found if text])
        inner = self.describe(body[0]) if len(body) == 1 else None
        return inner and inner[0].lower() + inner[1:]


def explain(source: str) -> str | None:
    """Describe a function.

    Args:
        source: code whose first top-level function is meant; its docstring is skipped.

    Returns:
        Sentences about its arguments and each of its statements; None if there is no function, a statement cannot be
        described, or there are more than MAX_STATEMENTS.
    """
    function = next((node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)), None)
    if function is None or function.args.vararg or function.args.kwarg or function.args.kwonlyargs:
        return None
    body = function.body[1:] if ast.get_docstring(function) else function.body
    names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
    describer = Describer(source)
    sentences = [describer.describe(node) for node in body]
    num_statements = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    if not sentences or None in sentences or num_statements > MAX_STATEMENTS or function.decorator_list:
        return None
    takes = f"takes {enumerate_words([f'`{name}`' for name in names])}" if names else "takes no arguments"
    simple = describer.action(body[0])
    if len(body) == 1 and simple:
        return f"`{function.name}` {takes} and {simple}."
    return f"`{function.name}` {takes}. " + " ".join(f"{text}." for text in sentences if text)
