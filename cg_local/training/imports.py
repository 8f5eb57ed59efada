"""What a file imports, and which file of the repository that is.

Owns the reading of import statements (Python's by `ast`, others' by tree-sitter) and the matching of their paths with
the repository's. The graph of all files is `import_graph`'s.
Invariant: a match never leaves the repository, and the same files give the same matches in any order.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from cg_local.languages import language_of
from cg_local.training import grammars

TOP_LINES = 150
"""Only imports that begin within so many lines from a file's top count: the report reads the top lines too."""

STATEMENTS = {
    "javascript": {"import_statement", "export_statement", "call_expression"},
    "typescript": {"import_statement", "export_statement", "call_expression"},
    "tsx": {"import_statement", "export_statement", "call_expression"},
    "java": {"import_declaration"},
    "kotlin": {"import"},
    "csharp": {"using_directive"},
    "c": {"preproc_include"},
    "cpp": {"preproc_include"},
    "go": {"import_spec"},
    "rust": {"use_declaration", "mod_item"},
    "ruby": {"call"},
    "php": {
        "namespace_use_declaration", "require_expression", "require_once_expression", "include_expression",
        "include_once_expression",
    },
    "bash": {"command"},
    "css": {"import_statement"},
    "html": {"start_tag", "self_closing_tag"},
}  # fmt: skip
"""Node types of a grammar that can hold an import; languages that are not here import nothing."""

# The quoted path of a statement that names a file, and the dotted name of one that names a module.
QUOTED = {
    "javascript": re.compile(r"""(?:^import|^export\b.*?\bfrom|^require\(|^import\().*?["']([^"'\n]+)["']""", re.S),
    "c": re.compile(r'^#\s*include\s+"([^"\n]+)"'),
    "go": re.compile(r'"([^"\n]+)"'),
    "ruby": re.compile(r"""^require(?:_relative)?\W+["']([^"'\n]+)["']"""),
    "bash": re.compile(r"""^(?:source|\.)\s+["']?(?:\$\{?\w+\}?/)?([\w./-]+)"""),
    "css": re.compile(r"""["']([^"'\n]+)["']"""),
    "html": re.compile(r"""^<(?:script|link)\b.*?\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", re.S),
    "php": re.compile(r"""^(?:require|include)(?:_once)?\b.*?["']([^"'\n]+)["']"""),
}
QUOTED |= {"typescript": QUOTED["javascript"], "tsx": QUOTED["javascript"], "cpp": QUOTED["c"]}
DOTTED = {
    "java": re.compile(r"^import\s+(?:static\s+)?([\w.]+)"),
    "kotlin": re.compile(r"^import\s+([\w.]+)"),
    "csharp": re.compile(r"^(?:global\s+)?using\s+(?:static\s+)?(?:\w+\s*=\s*)?([\w.]+)\s*;"),
    "php": re.compile(r"^use\s+(?:function\s+|const\s+)?\\?([\w\\]+)"),
}

FAMILIES = [{"javascript", "typescript", "tsx"}, {"c", "cpp"}, {"java", "kotlin"}]
"""Languages that import each other's files without naming their ending."""

STARTS_OUTSIDE = {"go", "php", "csharp", "rust"}
"""Languages whose import paths may begin with parts that stand for the repository itself (module, namespace, crate)."""

INDEX_NAMES = {"python": "__init__", "javascript": "index", "typescript": "index", "tsx": "index", "rust": "mod"}


@dataclass(frozen=True)
class Import:
    """One imported path.

    Attributes:
        parts: folders and name, without a file ending.
        suffix: the file ending where the statement names it, else "".
        names: words by which the file speaks of what it imports.
        is_relative: the path was given relative to the file; `parts` are then already counted from the root.
        has_member: the last part may be something inside the file rather than the file.
    """

    parts: tuple[str, ...]
    suffix: str = ""
    names: tuple[str, ...] = ()
    is_relative: bool = False
    has_member: bool = False


def imports_of(path: str, text: str) -> list[Import]:
    """The imports at the top of a file.

    Args:
        path: the file's path in its repository, with forward slashes.
        text: its content; where it does not parse, what can be read of it.
    """
    language = language_of(path)
    if language == "python":
        return list(python_imports(path, text))
    if language not in STATEMENTS:
        return []
    found: list[Import] = []
    for node in grammars.descendants(grammars.parse(language, text).root_node):
        if node.type in STATEMENTS[language] and node.start_point[0] < TOP_LINES and node.text is not None:
            found += statement_imports(language, path, node.text.decode(errors="replace"))
    return found


def python_imports(path: str, text: str) -> Iterator[Import]:
    """Imports of a Python file, from any depth of its top lines; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    folder = PurePosixPath(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node.lineno <= TOP_LINES:
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                yield Import(parts, names=(alias.asname or parts[-1],))
        elif isinstance(node, ast.ImportFrom) and node.lineno <= TOP_LINES:
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level > len(folder) + 1:
                continue  # leads out of the repository
            if node.level:
                base = folder[: len(folder) - node.level + 1] + base
            for alias in node.names:
                tail = () if alias.name == "*" else (alias.name,)
                yield Import(
                    base + tail,
                    names=(alias.asname or alias.name,),
                    is_relative=node.level > 0,
                    has_member=bool(tail),
                )


def statement_imports(language: str, path: str, statement: str) -> Iterator[Import]:
    """Imports of one statement's text in a language other than Python."""
    if language == "rust":
        yield from rust_imports(statement)
        return
    quoted = QUOTED[language].search(statement) if language in QUOTED else None
    if quoted:
        target = PurePosixPath(quoted[1])
        suffix = target.suffix if language_of(target.name) else ""
        parts = (target.with_suffix("") if suffix else target).parts
        if quoted[1].startswith(".") or "require_relative" in statement:
            resolved = resolve(PurePosixPath(path).parent.parts, parts)
            if resolved is not None:
                yield Import(resolved, suffix, names_in(statement, parts), is_relative=True)
        else:
            # "./" and "@/" of bundlers stand for a root that is not named in the repository.
            yield Import(
                tuple(part for part in parts if part not in ("/", "@", "~")), suffix, names_in(statement, parts)
            )
        return
    dotted = DOTTED[language].search(statement) if language in DOTTED else None
    if dotted:
        parts = tuple(part for part in re.split(r"[.\\]", dotted[1]) if part)
        yield Import(parts, names=parts[-1:], has_member=language != "csharp")


def rust_imports(statement: str) -> Iterator[Import]:
    """Imports of a `use` or `mod` statement; braces are opened up."""
    module = re.match(r"(?:pub(?:\(\w+\))?\s+)?mod\s+(\w+)\s*;", statement)
    if module:
        yield Import((module[1],), names=(module[1],))
    use = re.match(r"(?:pub(?:\(\w+\))?\s+)?use\s+(.*?);", statement, re.S)
    if not use:
        return
    head, _, inner = use[1].partition("{")
    for tail in re.findall(r"[\w:]+", inner) or [""]:
        parts = tuple(part for part in f"{head}{tail}".split("::") if part not in ("", "crate", "self", "super", "*"))
        words = tuple(part.strip() for part in parts)
        if words:
            yield Import(words, names=words[-1:], has_member=True)


def resolve(folder: tuple[str, ...], parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """`parts` seen from `folder`, with `..` taken up; None where it leads out of the repository."""
    at = list(folder)
    for part in parts:
        if part == "..":
            if not at:
                return None
            at.pop()
        elif part != ".":
            at.append(part)
    return tuple(at)


def names_in(statement: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a statement apart from its path and keywords; the file's own name where there are none."""
    words = re.findall(r"\w+", re.sub(r"""["'<].*?["'>]""", "", statement, flags=re.S))
    keywords = {"import", "from", "export", "require", "include", "type", "as", "const", "default", "load"}
    return tuple(word for word in words if word not in keywords) or parts[-1:]


class PathIndex:
    """The paths of a repository, found by the ends of their parts."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Index `paths`; of two files of one name, which counts is decided when something is looked up."""
        self.by_last: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        for path in sorted(paths):
            parts = module_parts(path)
            if parts:
                self.by_last[parts[-1]].append((parts, path))

    def find(self, wanted: Import, importer: str) -> list[str]:
        """The files that an import means: the longest suffix match, and of several the nearest to the importer.

        Args:
            wanted: the import.
            importer: path of the file that holds it.

        Returns:
            Usually one path or none; in Go every file of the imported folder.
        """
        language = language_of(importer) or ""
        if (
            language == "python"
            and not wanted.is_relative
            and wanted.parts[:1]
            and wanted.parts[0] in sys.stdlib_module_names
        ):
            return []
        trials = [wanted.parts] + ([wanted.parts[:-1]] if wanted.has_member else [])
        if language in STARTS_OUTSIDE:
            trials = sorted(
                (trial[start:] for trial in trials for start in range(len(trial))), key=lambda trial: -len(trial)
            )
        for trial in trials:
            matches = [
                (parts, path)
                for parts, path in self.by_last.get(trial[-1] if trial else "", [])
                if path != importer
                and is_reachable(path, wanted.suffix, language)
                and ends_with(parts, trial, wanted.is_relative)
            ]
            if matches and language == "go":
                nearest = max(shared_folders(path, importer) for _, path in matches)
                return [path for _, path in matches if shared_folders(path, importer) == nearest]
            if matches:
                return [min(matches, key=lambda item: (-shared_folders(item[1], importer), len(item[0]), item[1]))[1]]
        return []


def module_parts(path: str) -> tuple[str, ...]:
    """The parts by which a file is imported: without its ending; an index file and a Go file count as their folder."""
    language = language_of(path) or ""
    pure = PurePosixPath(path)
    parts = pure.with_suffix("").parts
    return parts[:-1] if language == "go" or parts[-1] == INDEX_NAMES.get(language) else parts


def is_reachable(path: str, suffix: str, language: str) -> bool:
    """Whether an import with this stated ending, or in this language, can mean the file."""
    if suffix:
        # TypeScript imports "./a.js" and means a.ts.
        return path.endswith(suffix) or (suffix == ".js" and path.endswith((".ts", ".tsx")))
    found = language_of(path) or ""
    return found == language or any(found in family and language in family for family in FAMILIES)


def ends_with(parts: tuple[str, ...], wanted: tuple[str, ...], is_whole: bool) -> bool:
    """Whether `parts` end with `wanted`, or equal it where it was given from the root."""
    return parts == wanted if is_whole else parts[-len(wanted) :] == wanted


def shared_folders(first: str, second: str) -> int:
    """Number of leading folders that two paths have in common."""
    count = 0
    for one, other in zip(PurePosixPath(first).parent.parts, PurePosixPath(second).parent.parts, strict=False):
        if one != other:
            break
        count += 1
    return count


def word_counts(text: str) -> Counter[str]:
    """How often each word stands in a text; an import's importance is how often its names do."""
    return Counter(re.findall(r"\w+", text))
