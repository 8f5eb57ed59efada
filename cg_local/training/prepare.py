"""Turns the folders that a user names into the two text files that training reads.

Owns the `[corpus]` options, the order of the steps and the record of what was taken and dropped. The rules themselves
are in `corpus`, `repositories`, `decontamination` and `import_graph`.
Invariant: `sources.json` is written last, so that a folder with it is complete; it names the options it was made by.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cg_local.errors import TrainingError
from cg_local.languages import LANGUAGES, language_of
from cg_local.training import corpus, repositories
from cg_local.training.decontamination import EvaluationIndex
from cg_local.training.import_graph import reading_order


@dataclass(frozen=True)
class CorpusRecipe:
    """What a run learns from. Paths are relative to the recipe's file; `~` is the home folder.

    Attributes:
        folders: repositories, or folders of repositories.
        wheels: folders of Python wheels, as `pip download --no-deps` fills them.
        standard_libraries: "VERSION=FOLDER" of Python standard libraries; what an earlier one has is a duplicate.
        evaluation: problem files (JSON lines, gzip or not, in HumanEval's layout) that must not be trained on.
        languages: names as in `languages.LANGUAGES`.
        any_licence: the user states that the folders' text is theirs to train on; else only permissive licences count.
        held_out_share: share of the files, 0..1, kept for validation, chosen by the hash of their path.
        max_package_bytes: upper bound of one package's share, so that no house style dominates; the files beyond it
            are chosen by hash.
        prepared: a folder that an earlier run has prepared, instead of all of the above.
        tokenizer: SentencePiece model with CodeGemma's ids; empty: trained on the corpus.
    """

    folders: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    standard_libraries: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("python",)
    any_licence: bool = False
    held_out_share: float = 0.01
    max_package_bytes: int = 9_000_000
    prepared: str = ""
    tokenizer: str = ""

    def check(self) -> None:
        """Raise TrainingError where an option cannot be meant."""
        for name in self.languages:
            if name not in LANGUAGES:
                raise TrainingError(f"[corpus] languages: {name!r} is unknown; known are {', '.join(LANGUAGES)}.")
        if not 0.0 <= self.held_out_share < 1.0:
            raise TrainingError(f"[corpus] held_out_share is {self.held_out_share}; it must be from 0 to below 1.")
        if not (self.prepared or self.folders or self.wheels or self.standard_libraries):
            raise TrainingError('[corpus] names no source. Give folders = ["path/to/repositories"], or wheels.')


@dataclass
class Record:
    """What became of the files.

    Attributes:
        options: the corpus recipe as a table.
        sources: one entry a package that contributed: name, version, licence, files, bytes.
        refused: packages left out for their licence, with the licence stated.
        dropped: number of files dropped, by reason.
        held_out: paths of the validation files.
    """

    options: dict[str, object] = field(default_factory=dict)
    sources: list[dict[str, object]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    held_out: list[str] = field(default_factory=list)


def packages(recipe: CorpusRecipe) -> Iterator[tuple[corpus.Package, Iterator[corpus.SourceFile]]]:
    """Every source: the standard libraries in the order given, the wheels and the repositories by name."""
    for item in recipe.standard_libraries:
        version, separator, folder = item.partition("=")
        if not separator or not Path(folder).is_dir():
            raise TrainingError(
                f"[corpus] standard_libraries: {item!r} must be VERSION=FOLDER with an existing folder."
            )
        yield corpus.read_standard_library(Path(folder), version)
    for folder in recipe.wheels:
        if not Path(folder).is_dir():
            raise TrainingError(f"{folder}: no such folder. Fill it with `pip download --no-deps --only-binary :all:`.")
        for path in sorted(Path(folder).glob("*.whl")):
            yield corpus.read_wheel(path)
    for folder in recipe.folders:
        for root in repositories.repositories_in(Path(folder)):
            yield repositories.read_repository(root, frozenset(recipe.languages), any_licence=recipe.any_licence)


def select(
    files: Iterator[corpus.SourceFile] | list[corpus.SourceFile],
    seen: set[bytes],
    index: EvaluationIndex,
    record: Record,
    max_bytes: int = CorpusRecipe.max_package_bytes,
) -> list[corpus.SourceFile]:
    """Apply the filters to one package's files, in a hash order, up to `max_bytes`.

    Args:
        files: all source files of the package.
        seen: content keys of the files taken so far; extended.
        index: evaluation problems.
        record: counters; updated.
        max_bytes: where the package's share ends.

    Returns:
        The files to keep, licence headers removed, sorted by path.
    """
    kept: list[corpus.SourceFile] = []
    num_bytes = 0
    for file in sorted(files, key=lambda item: corpus.content_key(item.path)):
        text = corpus.without_licence_header(file.text)
        key = corpus.content_key(text)
        if num_bytes > max_bytes:
            reason = "package share used up"
        elif not corpus.is_readable_code(text, language_of(file.path) or ""):
            reason = "not readable code"
        elif key in seen:
            reason = "duplicate"
        elif index.is_contaminated(text):
            reason = "shares words with an evaluation set"
        else:
            seen.add(key)
            num_bytes += len(text)
            kept.append(corpus.SourceFile(file.package, file.path, text))
            continue
        record.dropped[reason] += 1
    return sorted(kept, key=lambda item: item.path)


def in_reading_order(files: list[corpus.SourceFile]) -> Iterator[tuple[int, corpus.SourceFile]]:
    """The files of a package with the number of their list in `import_graph.reading_order`."""
    by_path = {file.path: file for file in files}
    for group, paths in enumerate(reading_order({path: file.text for path, file in by_path.items()})):
        for path in paths:
            yield group, by_path[path]


def prepare(out: Path, recipe: CorpusRecipe, report: Callable[[str], None] = lambda text: None) -> Record:
    """Write the corpus.

    Args:
        out: folder for `train.jsonl`, `held_out.jsonl` (one `{"package", "path", "group", "text"}` a line, each
            package in its reading order) and `sources.json`; created.
        recipe: the sources and rules.
        report: takes a line for each source.

    Returns:
        The record that is also in `sources.json`.

    Raises:
        TrainingError: nothing was found to train on, or a source cannot be read.
    """
    recipe.check()
    out.mkdir(parents=True, exist_ok=True)
    index = EvaluationIndex.from_files([Path(path) for path in recipe.evaluation])
    record, seen = Record(options=asdict(recipe)), set[bytes]()
    with (
        (out / "train.jsonl").open("w", encoding="utf-8") as train,
        (out / "held_out.jsonl").open("w", encoding="utf-8") as held_out,
    ):
        for package, files in packages(recipe):
            if not (corpus.is_permissive(package.licence) or recipe.any_licence):
                record.refused[package.name] = package.licence
                report(f"{package.name}: left out, its licence is {package.licence!r}")
                continue
            kept = select(files, seen, index, record, recipe.max_package_bytes)
            for group, file in in_reading_order(kept):
                line = {"package": package.name, "path": file.path, "group": group, "text": file.text}
                is_held_out = file.is_held_out(recipe.held_out_share)
                (held_out if is_held_out else train).write(json.dumps(line) + "\n")
            record.held_out += [f"{package.name}/{f.path}" for f in kept if f.is_held_out(recipe.held_out_share)]
            entry = {"files": len(kept), "bytes": sum(len(file.text.encode()) for file in kept)}
            if kept:
                record.sources.append({**asdict(package), **entry})
                report(f"{package.name}: {entry['files']} files, {entry['bytes']:,} bytes")
    if not record.sources:
        raise TrainingError(nothing_found(recipe, record))
    content = {**vars(record), "dropped": dict(record.dropped)}
    (out / "sources.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return record


def nothing_found(recipe: CorpusRecipe, record: Record) -> str:
    """The message of a corpus without a file: what was looked at, and why nothing of it counts."""
    places = ", ".join([*recipe.folders, *recipe.wheels, *recipe.standard_libraries])
    reasons = [f"{count} files {reason}" for reason, count in sorted(record.dropped.items())]
    reasons += [f"{name} has the licence {licence!r}" for name, licence in sorted(record.refused.items())]
    found = f"{'; '.join(reasons[:4])}" if reasons else f"no file in {', '.join(recipe.languages)}"
    return (
        f"{places}: nothing to train on was found ({found}). Name folders of permissively licensed source under "
        "[corpus] folders, or set any_licence = true for code that is yours."
    )


def is_prepared(folder: Path, recipe: CorpusRecipe) -> bool:
    """Whether `folder` holds a complete corpus.

    Raises:
        TrainingError: it does, but made by other options.
    """
    path = folder / "sources.json"
    if not path.is_file():
        return False
    options = json.loads(path.read_text(encoding="utf-8")).get("options", {})
    wanted = json.loads(json.dumps(asdict(recipe)))
    changed = [name for name in wanted if name not in ("tokenizer", "prepared") and options.get(name) != wanted[name]]
    if changed:
        raise TrainingError(
            f"{folder}: made with another {changed[0]} in [corpus] ({options.get(changed[0])!r}, now "
            f"{wanted[changed[0]]!r}). Use another run folder, or delete this one to read the sources again."
        )
    return True
