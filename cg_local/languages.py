"""The programming languages that are known by name, and the file names they go by.

Owns the table alone; grammars are `grammars`', comments and strings `infill.syntax`'s. Invariant: an ending belongs to
one language.
"""

from __future__ import annotations

from pathlib import PurePath

LANGUAGES = {
    "python": (".py", ".pyi"),
    "javascript": (".js", ".jsx", ".mjs", ".cjs"),
    "typescript": (".ts", ".mts", ".cts"),
    "tsx": (".tsx",),
    "java": (".java",),
    "c": (".c", ".h"),
    "cpp": (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"),
    "csharp": (".cs",),
    "go": (".go",),
    "rust": (".rs",),
    "kotlin": (".kt", ".kts"),
    "ruby": (".rb",),
    "php": (".php",),
    "bash": (".sh", ".bash"),
    "sql": (".sql",),
    "html": (".html", ".htm"),
    "css": (".css",),
    "json": (".json",),
    "yaml": (".yaml", ".yml"),
    "markdown": (".md",),
}
"""Name of each language, as its tree-sitter grammar is called, and its file name endings."""

LANGUAGE_BY_SUFFIX = {suffix: name for name, suffixes in LANGUAGES.items() for suffix in suffixes}


def language_of(path: str) -> str | None:
    """The language of a file by its name's ending, or None where it is not one of `LANGUAGES`."""
    return LANGUAGE_BY_SUFFIX.get(PurePath(path).suffix.lower())
