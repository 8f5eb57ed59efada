"""Which files texts for calibration and evaluation are taken from, and to which of the two a file belongs.

Owns the listing of the user's files and of the installed standard library, their licences, and the share that is kept
for evaluation. Windows of tokens are `corpora`'s. Invariant: a text belongs to calibration or to evaluation by the
SHA-256 of its content alone, so that no order, name or copy brings it into both.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cg_local.errors import CorpusError
from cg_local.languages import language_of
from cg_local.repository.work_tree import WorkTree, lies_in_git

EVALUATION_SHARE = 0.25
"""Of all digests. Evaluation needs a fifth of the tokens of calibration, and enough files for its intervals."""

PROSE_LANGUAGES = {".md": "markdown", ".rst": "restructuredtext", ".txt": "text"}
STANDARD_LIBRARY_LICENCE = "PSF-2.0"
NOT_STATED = "not stated"
SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+()-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+()-]+)*)")
SPDX_CHARACTERS = 2000

# Tests are left out because many distributions install Python without them; the others are data or other projects'.
SKIPPED_PARTS = frozenset(["test", "tests", "idle_test", "encodings", "ensurepip", "pydoc_data", "dist-packages"])
TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class TextFile:
    """A file that texts were taken from, for the record.

    Attributes:
        name: path below the folder it was found in, with forward slashes; a chapter of a file behind "#".
        sha256: of its text in UTF-8 with newlines as line ends.
        licence: SPDX identifier that the file states, of the standard library its own, or "not stated".
        language: a key of `languages.LANGUAGES`, or "text", "restructuredtext".
        num_bytes: of that text.
    """

    name: str
    sha256: str
    licence: str
    language: str
    num_bytes: int


@dataclass(frozen=True)
class SourceText:
    """A file with its text."""

    file: TextFile
    text: str


@dataclass(frozen=True)
class ListedFile:
    """A file that may be read.

    Attributes:
        name, language: as in TextFile.
        num_bytes: on disk.
        licence: of a file that states none.
        tree: reads it.
        path: in the tree; "" for a text that is known already.
        text: that text.
    """

    name: str
    language: str
    num_bytes: int
    licence: str
    tree: WorkTree | None = None
    path: str = ""
    text: str | None = None

    def read(self) -> SourceText | None:
        """Return its text; None where it must not or cannot be read (a secret, binary, too large, a link)."""
        text = self.text if self.tree is None else self.tree.read(self.path)
        if not text:
            return None
        data = text.encode()
        stated = SPDX.search(text[:SPDX_CHARACTERS])
        licence = stated[1] if stated else self.licence
        return SourceText(
            TextFile(self.name, hashlib.sha256(data).hexdigest(), licence, self.language, len(data)), text
        )


def list_files(paths: Sequence[Path] | None) -> list[ListedFile]:
    """Return the files that texts may be taken from, in an order that depends on their names alone.

    Args:
        paths: files and folders; None: the standard library of the Python that runs this. In a folder the files that
            git ignores, links, and those whose name says that they hold secrets do not count.

    Raises:
        CorpusError: a path does not exist, or is a file of no known language.
    """
    found = list(_standard_library()) if paths is None else [file for path in paths for file in _named(Path(path))]
    return sorted(found, key=lambda file: (hashlib.sha256(file.name.encode()).digest(), file.name))


def readable_texts(files: Iterable[ListedFile], *, is_evaluation: bool) -> Iterator[SourceText]:
    """Yield the texts of one of the two sides, each text once; reads as far as it is asked."""
    seen: set[str] = set()
    for file in files:
        source = file.read()
        if source is None or source.file.sha256 in seen:
            continue
        seen.add(source.file.sha256)
        if belongs_to_evaluation(source.file.sha256) == is_evaluation:
            yield source


def belongs_to_evaluation(sha256: str) -> bool:
    """Whether a text is kept for evaluation.

    Args:
        sha256: hexadecimal digest of the text.
    """
    return int(sha256[:8], 16) < EVALUATION_SHARE * 2**32


def _named(path: Path) -> Iterator[ListedFile]:
    try:
        resolved = path.expanduser().resolve(strict=True)
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}; name files or folders with texts") from None
    if resolved.is_dir():
        tree = WorkTree(resolved, is_git=lies_in_git(resolved), extra_suffixes=tuple(PROSE_LANGUAGES))
        if tree.is_git and not tree.paths():  # git ignores the folder, and yet it was named
            tree = WorkTree(resolved, is_git=False, extra_suffixes=tuple(PROSE_LANGUAGES))
        yield from _listed(tree, NOT_STATED)
        return
    language = _language(resolved.name)
    if language is None:
        raise CorpusError(f"{path}: {resolved.suffix or resolved.name} is no known language; name source or text files")
    tree = WorkTree(resolved.parent, is_git=False)
    if tree.read(resolved.name) is None:
        raise CorpusError(f"{path}: {tree.refused.get(resolved.name, 'is empty')}; name another file")
    yield ListedFile(resolved.name, language, resolved.stat().st_size, NOT_STATED, tree, resolved.name)


def _standard_library() -> Iterator[ListedFile]:
    """The library's own files, C headers included, and the chapters of the language's manual that `pydoc` shows."""
    for scheme in ("stdlib", "include"):
        root = Path(sysconfig.get_path(scheme)).resolve()
        if root.is_dir():
            tree = WorkTree(root, is_git=False, extra_suffixes=tuple(PROSE_LANGUAGES))
            yield from _listed(tree, STANDARD_LIBRARY_LICENCE, SKIPPED_PARTS)
    topics = Path(sysconfig.get_path("stdlib"), TOPICS)
    for name, text in sorted(_topics(topics).items()):
        yield ListedFile(f"{TOPICS}#{name}", "restructuredtext", len(text), STANDARD_LIBRARY_LICENCE, text=text)


def _listed(tree: WorkTree, licence: str, skipped: frozenset[str] = frozenset()) -> Iterator[ListedFile]:
    for path in tree.paths():
        language = _language(path)
        if language is None or skipped & set(PurePosixPath(path).parts):
            continue
        try:
            num_bytes = (tree.root / path).stat().st_size
        except OSError:  # gone since it was listed
            continue
        yield ListedFile(path, language, num_bytes, licence, tree, path)


def _language(path: str) -> str | None:
    return PROSE_LANGUAGES.get(PurePosixPath(path).suffix.lower()) or language_of(path)


def _topics(path: Path) -> dict[str, str]:
    """Return the chapters of `pydoc_data/topics.py`, which is a literal; some distributions leave it out."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        topics = ast.literal_eval(found)
    except (OSError, ValueError, SyntaxError, StopIteration):
        return {}
    return {str(name): str(text).strip() + "\n" for name, text in topics.items()} if isinstance(topics, dict) else {}


def standard_library_name() -> str:
    """Return what the standard library is called in a record: "Python 3.12.4 standard library"."""
    return f"Python {'.'.join(map(str, sys.version_info[:3]))} standard library"
