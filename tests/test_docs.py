"""Rules of form: docstrings, sizes, words, and documents that name only what exists."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

import pytest
from source_tree import ROOT, source_files

from cg_local import errors
from cg_local.cli.app import COMMANDS

MAX_FUNCTION_LINES, MAX_KERNEL_LINES, MAX_FILE_LINES = 60, 80, 400
DOCUMENTS = {"README.md": 150, "ARCHITECTURE.md": 180, "CONTRIBUTING.md": 80, "CHANGELOG.md": 400}
# Arguments that Numba hands to an intrinsic, and that no caller sees.
NUMBA_ARGUMENTS = {"typing_context"}
# An absolute path into somebody's own folders.
LOCAL_PATH = re.compile(r"""(?:^|["'`( ])/(?:home|root|tmp|work|Users)/""", re.MULTILINE)

FILES = source_files()
PRODUCT = [file for file in FILES if not file.path.startswith("tests/")]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Give the public functions and classes of a module and the public methods of those classes, by name."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    is_overload = isinstance(method, Function) and "overload" in map(ast.unparse, method.decorator_list)
                    if isinstance(method, Function) and not method.name.startswith("_") and not is_overload:
                        yield f"{node.name}.{method.name}", method


def product_definitions() -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Give the public definitions of all files but the tests, with their places."""
    for file in PRODUCT:
        for name, node in public_definitions(file.tree):
            yield f"{file.path}: {name}", node


def section(docstring: str, name: str) -> str:
    """Return the indented text below "Args:", "Raises:"; empty when there is none."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    return found.group(1) if found else ""


def items(text: str) -> list[str]:
    """Return the items of a section, continuation lines joined."""
    joined = re.sub(r"\n {5,}", " ", text)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def documented_arguments(docstring: str) -> list[str]:
    """Return the names before a colon: "keys, values: pages; head: which" documents keys, values and head."""
    names: list[str] = []
    for item in items(section(docstring, "Args")):
        for group in re.findall(r"(?:^|[;,.] )(\*{0,2}\w+(?:, \*{0,2}\w+)*): ", item):
            names += [name.lstrip("*") for name in group.split(", ")]
    return [name for name in names if name not in ("None", "True", "False")]


def arguments_of(node: Function | ast.ClassDef) -> set[str]:
    """Return the arguments of a function, or of a class's constructor: __init__'s, or a dataclass's fields."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, Function) and item.name == "__init__"]
        if not inits:
            fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            return {field.id for field in fields if isinstance(field, ast.Name)}
        node = inits[0]
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {argument.arg for argument in named if argument} - {"self", "cls"} - NUMBA_ARGUMENTS


def is_kernel(node: Function) -> bool:
    """Tell whether Numba compiles a function, or it writes machine code for one."""
    return any(re.match(r"(njit|intrinsic)\b", ast.unparse(decorator)) for decorator in node.decorator_list)


def test_every_module_says_what_it_is() -> None:
    assert [file.path for file in FILES if not ast.get_docstring(file.tree)] == []


def test_every_public_definition_is_documented() -> None:
    assert [place for place, node in product_definitions() if not ast.get_docstring(node)] == []


def test_documented_arguments_are_those_of_the_signature() -> None:
    wrong: dict[str, list[str]] = {}
    for place, node in product_definitions():
        docstring = ast.get_docstring(node) or ""
        difference = set(documented_arguments(docstring)) ^ arguments_of(node)
        if section(docstring, "Args") and difference:
            wrong[place] = sorted(difference)
    assert wrong == {}


def test_documented_errors_exist() -> None:
    strangers: list[str] = []
    for place, node in product_definitions():
        for item in items(section(ast.get_docstring(node) or "", "Raises")):
            for error in re.findall(r"\b[A-Z]\w*(?:Error|Interrupt|Iteration)\b", item.split(":")[0]):
                if not hasattr(errors, error) and not hasattr(builtins, error):
                    strangers.append(f"{place}: {error}")
    assert strangers == []


def test_files_hold_one_idea() -> None:
    lengths = {file.path: file.text.count("\n") for file in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_stay_short() -> None:
    too_long: list[str] = []
    for file in FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, Function):
                length = int(node.end_lineno or 0) - node.lineno + 1
                if length > (MAX_KERNEL_LINES if is_kernel(node) else MAX_FUNCTION_LINES):
                    too_long.append(f"{file.path}: {node.name} has {length} lines")
    assert too_long == []


def test_nothing_is_promised_and_no_folder_of_one_machine_is_named() -> None:
    promise = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X])\b")
    assert [file.path for file in FILES if promise.search(file.text) or LOCAL_PATH.search(file.text)] == []


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {file.path.split("/")[-1] for file in FILES}
    assert not names & {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


@pytest.mark.parametrize(("document", "max_lines"), DOCUMENTS.items())
def test_documents_are_short_and_name_only_what_exists(document: str, max_lines: int) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count("\n") <= max_lines
    paths = re.findall(r"`((?:cg_local|quant|cli|tests|benchmarks|examples)/[\w./-]*)`", text)
    paths += re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert not LOCAL_PATH.search(text)


def test_architecture_names_every_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    product = [file.path for file in PRODUCT if file.path.startswith("cg_local/")]
    files = {path for path in product if path.count("/") == 1 and not path.endswith("__init__.py")}
    folders = {path.rsplit("/", 1)[0] + "/" for path in product if path.count("/") > 1}
    assert [name for name in sorted(files | folders) if f"`{name}`" not in text] == []


def test_readme_lists_the_commands_that_exist() -> None:
    listed = re.findall(r"^\| `cg-local (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(COMMANDS)
