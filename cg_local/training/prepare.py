"""Turns wheels and standard libraries into the two text files that training reads.

    python -m cg_local.training.prepare OUT_DIR --wheels DIR --stdlib VERSION=DIR ... --evaluation FILE ...

Owns the order of the steps and the record of what was taken and dropped. The rules themselves are in `corpus` and
`decontamination`. Writes `train.jsonl` and `held_out.jsonl` (one `{"package", "path", "text"}` a line) and
`sources.json`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cg_local.errors import TrainingError
from cg_local.training import corpus
from cg_local.training.decontamination import EvaluationIndex

MAX_PACKAGE_BYTES = 9_000_000
"""Upper bound of one package's share, so that no house style dominates; files beyond it are chosen by hash."""


@dataclass
class Record:
    """What became of the files.

    Attributes:
        sources: one entry a package that contributed: name, version, licence, files, bytes.
        refused: packages left out for their licence, with the licence stated.
        dropped: number of files dropped, by reason.
        held_out: paths of the validation files.
    """

    sources: list[dict[str, object]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    held_out: list[str] = field(default_factory=list)


def packages(
    wheels: Path, libraries: list[tuple[str, Path]]
) -> Iterator[tuple[corpus.Package, list[corpus.SourceFile]]]:
    """Every package with its files: the standard libraries in the order given, then the wheels by name."""
    for version, folder in libraries:
        package, files = corpus.read_standard_library(folder, version)
        yield package, list(files)
    for path in sorted(wheels.glob("*.whl")):
        package, files = corpus.read_wheel(path)
        yield package, list(files) if corpus.is_permissive(package.licence) else []


def select(
    files: list[corpus.SourceFile], seen: set[bytes], index: EvaluationIndex, record: Record
) -> list[corpus.SourceFile]:
    """Apply the filters to one package's files, in a hash order, up to `MAX_PACKAGE_BYTES`.

    Args:
        files: all Python files of the package.
        seen: content keys of the files taken so far; extended.
        index: evaluation problems.
        record: counters; updated.

    Returns:
        The files to keep, licence headers removed, sorted by path.
    """
    kept: list[corpus.SourceFile] = []
    num_bytes = 0
    for file in sorted(files, key=lambda item: corpus.content_key(item.path)):
        text = corpus.without_licence_header(file.text)
        key = corpus.content_key(text)
        if num_bytes > MAX_PACKAGE_BYTES:
            reason = "package share used up"
        elif not corpus.is_readable_code(text):
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


def prepare(out: Path, wheels: Path, libraries: list[tuple[str, Path]], evaluation: list[Path]) -> Record:
    """Write the corpus.

    Args:
        out: folder for the three files; created.
        wheels: folder of `.whl` files.
        libraries: (version, folder) of standard libraries; a file already seen in an earlier one is a duplicate.
        evaluation: problem files that must not be trained on.

    Returns:
        The record that is also in `sources.json`.

    Raises:
        TrainingError: nothing was found to train on.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, record, seen = EvaluationIndex.from_files(evaluation), Record(), set[bytes]()
    with (out / "train.jsonl").open("w") as train, (out / "held_out.jsonl").open("w") as held_out:
        for package, files in packages(wheels, libraries):
            if not corpus.is_permissive(package.licence):
                record.refused[package.name] = package.licence
                continue
            kept = select(files, seen, index, record)
            for file in kept:
                line = json.dumps({"package": package.name, "path": file.path, "text": file.text})
                (held_out if file.is_held_out else train).write(line + "\n")
            record.held_out += [f"{package.name}/{file.path}" for file in kept if file.is_held_out]
            entry = {"files": len(kept), "bytes": sum(len(file.text.encode()) for file in kept)}
            if kept:
                record.sources.append({**asdict(package), **entry})
    content = {**vars(record), "dropped": dict(record.dropped)}
    (out / "sources.json").write_text(json.dumps(content, indent=1))
    if not record.sources:
        raise TrainingError(
            f"{wheels}: no permissively licensed Python source found. Fill it with `pip download --no-deps`."
        )
    return record


def main() -> None:
    """Command line entry; see the module's head."""
    parser = argparse.ArgumentParser(description="Collect the training corpus.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--stdlib", action="append", default=[], metavar="VERSION=DIR")
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    libraries = [(version, Path(folder)) for version, _, folder in (item.partition("=") for item in options.stdlib)]
    record = prepare(options.out, options.wheels, libraries, options.evaluation)
    total = sum(int(str(source["bytes"])) for source in record.sources)
    print(f"{len(record.sources)} packages, {total / 1e6:.1f} MB")
    print(f"dropped {dict(record.dropped)}; refused {record.refused}")


if __name__ == "__main__":
    main()
