#!/usr/bin/env python3
"""Single missing lines of held-out files, as requests for `cg-local eval`.

This file owns which lines are asked for; answers and figures are `cg-local eval`'s. Invariant: the same corpus and
options give the same requests, and no two files give more than --per-file lines each.

    python benchmarks/held_out_lines.py corpus/held_out.jsonl > lines.jsonl
    cg-local eval lines.jsonl --model nano
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MIN_CHARACTERS = 4
"""A shorter line ("]", "):", "try:" is the shortest that asks anything) says little about a model."""


def asked_lines(text: str, per_file: int) -> list[int]:
    """Return the indices of lines that hold code, chosen by the digest of their place so that no seed is needed."""
    lines = text.split("\n")
    code = [
        index
        for index, line in enumerate(lines)
        if len(line.strip()) >= MIN_CHARACTERS and not line.lstrip().startswith("#")
    ]
    return sorted(sorted(code, key=lambda index: hashlib.sha256(f"{index}\0{text}".encode()).digest())[:per_file])


def window(lines: Sequence[str], index: int, characters: int) -> tuple[str, str]:
    """Return the text before and after a line: two thirds and one third of so many characters, in whole lines."""
    before, after = [], []
    room = characters * 2 // 3
    for line in reversed(lines[:index]):
        room -= len(line) + 1
        if room < 0:
            break
        before.append(line + "\n")
    room = characters // 3
    for line in lines[index + 1 :]:
        room -= len(line) + 1
        if room < 0:
            break
        after.append(line + "\n")
    return "".join(reversed(before)), "".join(after)


def requests(corpus: Path, per_file: int, characters: int) -> Iterator[dict[str, str]]:
    """Yield one request for each chosen line: everything around it within the window, and the line itself."""
    for entry in corpus.read_text(encoding="utf-8").splitlines():
        file = json.loads(entry)
        lines = file["text"].split("\n")
        for index in asked_lines(file["text"], per_file):
            prefix, suffix = window(lines, index, characters)
            yield {
                "id": f"{file['package']}/{file['path']}:{index + 1}",
                "prefix": prefix,
                "suffix": suffix,
                "expected": lines[index] + "\n",
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the requests; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="held_out.jsonl of a prepared corpus")
    parser.add_argument("--per-file", type=int, default=5, metavar="N", help="lines of each file (default: 5)")
    parser.add_argument("--characters", type=int, default=1500, help="around the line (default: 1500, nano's context)")
    options = parser.parse_args(arguments)
    for request in requests(options.corpus, options.per_file, options.characters):
        sys.stdout.write(json.dumps(request) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
