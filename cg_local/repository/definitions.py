"""The definitions of a source file, each whole and without what stands inside it.

Owns how a syntax tree becomes units of whole lines and what of a unit is its body: Python's by `ast`, other languages'
by tree-sitter. Which units are wanted is `excerpts`'. Invariant: units do not overlap and stand in the order of the
text; a file that does not parse, or whose grammar is not installed, has none.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cg_local.grammars import find_parser
from cg_local.languages import language_of

if TYPE_CHECKING:
    from tree_sitter import Node

IMPORTS = re.compile(
    r"import|preproc_include|using_directive|use_declaration|package|namespace|extern_crate|^identifier$"
)
"""Types of nodes that only name other files, or the file itself."""

FUNCTIONS = re.compile(r"function|method|constructor|destructor|lambda|arrow|accessor|getter|setter")
"""Types of nodes whose `body` says how, not what."""

VARIABLES = re.compile(r"variable|lexical|property|^declaration$|const|static|preproc_def")
"""Types of nodes that define values; a function's declaration in C is told from a variable's by its parentheses."""

WRAPPERS = re.compile(r"^(?:preproc_(?:if|ifdef|else|elif)|namespace_|linkage_specification|declaration_list|mod_item)")
"""Types of nodes whose members count as those of the file."""

NAMED_PARTS = ("_spec", "_declarator", "_alias", "variable_declaration")
TEMPLATE_PARTS = ("_definition", "_specifier", "declaration")
"""Endings of the types of nodes in which a name lies, where no field of the grammar leads to it."""

NAME_DEPTH = 5
"""A function in C lies this deep: definition, pointer, function, parentheses, identifier."""

MAX_COMMENT_LINES = 2
"""A longer comment is left out of an outline: it would take the place of several signatures."""

BODY_SIGNS = {"go": "", "kotlin": "", "ruby": "", "python": "..."}
"""What stands for a body; elsewhere ";", as in an interface or a header."""


@dataclass(frozen=True)
class Unit:
    """A statement at the top of a file.

    Attributes:
        names: what it defines.
        text: its lines.
        outline: its lines without the bodies of functions and without long comments.
        is_definition: a class, a function, a type; not a variable.
        is_public: other files are meant to use it.
    """

    names: tuple[str, ...]
    text: str
    outline: str
    is_definition: bool
    is_public: bool


@dataclass(frozen=True)
class Cut:
    """Bytes of a file, from `start` to before `end`, and what stands for them in an outline."""

    start: int
    end: int
    sign: bytes


def units_of(path: str, text: str) -> list[Unit]:
    """The definitions and variables of a file; imports are none.

    Args:
        path: its name decides the language.
        text: its content, with newlines only.
    """
    language = language_of(path) or ""
    if "\r" in text:
        return []  # the parsers do not agree on whether it ends a line
    if language == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
            return list(python_units(tree, text))
        except (SyntaxError, ValueError, RecursionError):
            pass  # newer or broken syntax: tree-sitter reads what it can
    parser = find_parser(language)
    return list(tree_units(parser.parse(text.encode()).root_node, language, text.encode())) if parser else []


def python_units(tree: ast.Module, text: str) -> Iterator[Unit]:
    """The units of a Python file."""
    data = text.encode()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", data)), len(data)]
    for node in tree.body:
        names = tuple(python_names(node))
        if names:
            span = starts[first_line(node)], starts[node.end_lineno or 0]
            cuts = [cut for function in outer_functions(node) for cut in python_cuts(function, starts, data)]
            is_definition = not isinstance(node, ast.Assign | ast.AnnAssign)
            yield make_unit(names, data, span, cuts, is_definition=is_definition)


def first_line(node: ast.stmt) -> int:
    """Number, from 0, of a statement's first line, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(item.lineno for item in decorators)]) - 1


def python_names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines; those of an `if` or `try` are its branches'."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.If | ast.Try):
        for inner in [*node.body, *node.orelse]:
            yield from python_names(inner)


def outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions in a statement that lie in no other function, in the order of the text."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from outer_functions(child)


def python_cuts(node: ast.FunctionDef | ast.AsyncFunctionDef, starts: list[int], data: bytes) -> Iterator[Cut]:
    """The body of a function, for which the first line of its docstring stands, or an ellipsis."""
    first = node.body[0]
    start, end = starts[first_line(first)], starts[node.end_lineno or 0]
    head = data[starts[node.lineno - 1] : start]
    if first_line(first) < node.lineno or not head.split(b"#")[0].strip():
        return  # the body stands on the line of the signature
    indent = data[start:end][: len(data[start:end]) - len(data[start:end].lstrip())]
    docstring = ast.get_docstring(node)
    line = docstring.strip().split("\n")[0] if docstring else ""
    sign = '"""' + line.replace('"""', "'''") + '"""' if line and "\\" not in line and not line.endswith('"') else "..."
    yield Cut(start, end, indent + sign.encode() + b"\n")


def tree_units(root: Node, language: str, data: bytes) -> Iterator[Unit]:
    """The units of a file in another language."""
    for node in top_nodes(root):
        names = tuple(dict.fromkeys(name for name in tree_names(node, NAME_DEPTH) if name))
        is_guard = node.type == "preproc_def" and node.child_by_field_name("value") is None
        if not names or is_guard or IMPORTS.search(node.type):
            continue
        start = data.rfind(b"\n", 0, node.start_byte) + 1
        end = data.find(b"\n", max(start, node.end_byte - 1)) + 1 or len(data)
        head = data[start : node.end_byte].decode(errors="replace").lstrip()
        is_hidden = head.startswith(("private ", "static ")) and language != "java"
        is_variable = bool(VARIABLES.search(node.type)) and "(" not in head.split("=")[0]
        yield make_unit(
            names, data, (start, end), list(tree_cuts(node, language)), is_definition=not is_variable, hidden=is_hidden
        )


def top_nodes(node: Node) -> Iterator[Node]:
    """The statements of a file; conditional compilation and namespaces are opened up."""
    for child in node.named_children:
        body = child.child_by_field_name("body")
        if WRAPPERS.match(child.type) and (body is not None or child.type.startswith(("preproc", "declaration_list"))):
            yield from top_nodes(body if body is not None else child)
        else:
            yield child


def tree_names(node: Node, depth: int) -> Iterator[str]:
    """The names that a node defines: its `name`, or those of what it declares."""
    name = node.child_by_field_name("name")
    if name is not None and name.text is not None:
        yield name.text.decode(errors="replace")
        return
    if not node.named_children and node.type.endswith("identifier") and node.text is not None:
        yield node.text.decode(errors="replace")
        return
    if depth and "comment" not in node.type:
        fields = ["type"] if node.type == "impl_item" else ["declarator", "declaration", "definition"]
        inner = [child for field in fields for child in node.children_by_field_name(field)]
        endings = TEMPLATE_PARTS if node.type == "template_declaration" else NAMED_PARTS
        specs = [child for child in node.named_children if child.type.endswith(endings)]
        if not inner and not specs and node.type.endswith("declaration"):
            specs = [child for child in node.named_children if child.type.endswith("identifier")][:1]
        for child in inner or specs:
            yield from tree_names(child, depth - 1)


def tree_cuts(node: Node, language: str) -> Iterator[Cut]:
    """The bodies of the functions in a node, and its long comments."""
    body = node.child_by_field_name("body")
    if body is None and FUNCTIONS.search(node.type):
        body = next((child for child in node.named_children if child.type == "function_body"), None)
    if body is not None and FUNCTIONS.search(node.type):
        if body.end_point[0] > body.start_point[0]:
            # A function that is a value ends with its body.
            sign = "{}" if re.search("arrow|expression", node.type) else BODY_SIGNS.get(language, ";")
            yield Cut(body.start_byte, body.end_byte, sign.encode())
        return
    for child in node.named_children:
        if "comment" in child.type and child.end_point[0] - child.start_point[0] >= MAX_COMMENT_LINES:
            yield Cut(child.start_byte, child.end_byte, b"")
        else:
            yield from tree_cuts(child, language)


def make_unit(
    names: tuple[str, ...], data: bytes, span: tuple[int, int], cuts: list[Cut], *, is_definition: bool,
    hidden: bool = False,
) -> Unit:  # fmt: skip
    """Take a unit out of the bytes of its file; a cut takes the white space before a body with it."""
    pieces, at = [], span[0]
    for cut in cuts:
        head = data[at : cut.start]
        pieces += [head.rstrip() if cut.sign == b";" else head, cut.sign]
        at = cut.end
    outline = b"".join([*pieces, data[at : span[1]]]).decode(errors="replace")
    outline = re.sub(r"\n[ \t]*(?=\n[ \t]*\n)", "", re.sub(r"[ \t]+$", "", outline, flags=re.M))
    text = data[span[0] : span[1]].decode(errors="replace")
    is_public = not hidden and any(not name.startswith("_") for name in names)
    return Unit(names, with_newline(text), with_newline(outline), is_definition, is_public)


def with_newline(text: str) -> str:
    """A text whose last line ends."""
    return text if text.endswith("\n") else text + "\n"
