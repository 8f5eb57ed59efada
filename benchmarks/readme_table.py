#!/usr/bin/env python3
"""README.md's table of speeds, generated from stored results of `cg-local bench`.

This file owns which figures stand in the table and how they are worded. Invariant: the text between the two markers in
README.md is what this file makes of the results, and a test compares them.

    python benchmarks/readme_table.py            # prints the text
    python benchmarks/readme_table.py --write    # puts it into README.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from readme_markers import markers, write_part

from cg_local.bench.engines import OWN_NAME
from cg_local.bench.figures import Spread
from cg_local.bench.setup import read_document
from cg_local.bench.summary import (
    Document,
    bandwidth,
    bandwidth_share,
    int8_peak,
    over_rounds,
    peak_share,
    peer_of,
    rate,
    ratio,
    warm_fill,
    warm_load,
)
from cg_local.bench.table import shown
from cg_local.errors import CgLocalError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
AROUND = markers("speed", "readme_table.py")
# Column -> the files whose rounds stand in it: several runs of the same model count as one with all their rounds.
COLUMNS: Mapping[str, str] = {"q4": "bench-2b-q4*.json", "q8": "bench-2b-q8*.json"}
# README has little room: a short prompt and a long one, no context and a long one. The results hold the others.
LENGTHS, DEPTHS = (512, 8000), (0, 8000)
# The peer that a column is held against.
PEERS: Mapping[str, str] = {"q4": "Q4_0", "q8": "Q8_0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; print the text or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the text into README.md")
    options = parser.parse_args(arguments)
    try:
        text = speed_text(stored_results())
        if options.write:
            write_part(AROUND, text)
        else:
            print(text)
    except (CgLocalError, OSError, ValueError) as error:
        print(f"readme_table: {error}", file=sys.stderr)
        return 1
    return 0


def stored_results() -> dict[str, Document]:
    """Return a document for each column that has results, all its runs' rounds together."""
    found = {}
    for column, pattern in COLUMNS.items():
        documents = [read_document(path) for path in sorted(RESULTS.glob(pattern))]
        if documents:
            found[column] = merged(documents)
    return found


def merged(documents: Sequence[Document]) -> Document:
    """Return one document with the rounds of all.

    Raises:
        ValueError: they are of different models, machines or numbers of threads.
    """
    first = documents[0]
    for other in documents[1:]:
        if other["num_threads"] != first["num_threads"]:
            raise ValueError(f"results on {other['num_threads']} threads, not {first['num_threads']}")
        for card, key in (("model", "sha256"), ("machine", "processor"), ("machine", "instruction_set")):
            if other[card][key] != first[card][key] and not (card == "model" and _has_same_weights(first, other)):
                raise ValueError(f"results of a different {card}: {other[card][key]}, not {first[card][key]}")
    rounds = [each for document in documents for each in document["rounds"]]
    return {**first, "rounds": rounds, "num_runs": len(documents), "engines": _merged_engines(documents)}


def _has_same_weights(first: Document, other: Document) -> bool:
    """Whether the peers' files, made from the same published weights as the model, are the same.

    Model folders held the time that it took to write them, so that two of the same weights had different digests.
    """
    ours, theirs = ({file["sha256"] for file in document.get("peer_files", {}).values()} for document in (first, other))
    return bool(ours) and ours == theirs


def _merged_engines(documents: Sequence[Document]) -> Mapping[str, Any]:
    """Every engine of any run with the times of loading of all; the first of each run may have read the disk."""
    engines: dict[str, Any] = {}
    for document in documents:
        for name, engine in document["engines"].items():
            before = engines.get(name)
            loads = engine["load_seconds"] if before is None else before["load_seconds"] + engine["load_seconds"][1:]
            engines[name] = {**(before or engine), "load_seconds": loads}
    return engines


def speed_text(results: Mapping[str, Document]) -> str:
    """Return the text between the markers: what was measured on, and the table.

    Raises:
        ValueError: there is no result.
    """
    if not results:
        raise ValueError(f"{RESULTS}: no result named {', '.join(COLUMNS.values())}; run `cg-local bench --json`")
    columns = [dict(_rows(name, document)) for name, document in results.items()]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [[label, *(column.get(label, "") for column in columns)] for label in labels]
    lines = ["| | " + " | ".join(results) + " |", "| --- " * (1 + len(results)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return _introduction(next(iter(results.values()))) + "\n\n" + "\n".join(lines)


def _introduction(document: Document) -> str:
    machine = document["machine"]
    limits = over_rounds(document, bandwidth), over_rounds(document, int8_peak)
    memory, peak = (found["median"] / 1e9 if found else 0 for found in limits)
    runs, rounds = document.get("num_runs", 1), len(document["rounds"])
    how_often = f"{rounds} round{'s' if rounds > 1 else ''}" + (f" of {runs} runs" if runs > 1 else "")
    on = (
        f"{document['num_threads']} cores of an {machine['processor']} ({machine['instruction_set']}; {memory:.1f} GB/s"
    )
    return (
        f"On {on} of read bandwidth, {peak:,.0f}\nbillion int8 operations/s), with random weights of 2B's exact shape; "
        f"medians of {how_often}, spread in brackets."
    )


def _rows(column: str, document: Document) -> Iterator[tuple[str, str]]:
    """Give label and text of every figure that was measured."""
    peer = peer_of(document, PEERS[column])
    yield from _row("loading, warm", warm_load(document, OWN_NAME), "s")
    for length in LENGTHS:
        share = over_rounds(document, peak_share(document, OWN_NAME, length))
        found = over_rounds(document, rate(OWN_NAME, "prefill", length))
        yield from _row(f"prompt of {length:,} tokens, tokens/s; of the int8 peak", found, "", share)
    for depth in DEPTHS:
        name = f"decoding after {depth:,} tokens" if depth else "decoding"
        share = over_rounds(document, bandwidth_share(document, depth))
        found = over_rounds(document, rate(OWN_NAME, "decode", depth))
        yield from _row(f"{name}, tokens/s; of the read bandwidth", found, "", share)
    one, eight = (rate(OWN_NAME, "batch", size) for size in (1, 8))
    yield from _row("8 sequences together, against one", over_rounds(document, ratio(eight, one)), "x")
    pairs = [(rate(OWN_NAME, kind, key), rate(str(peer), kind, key)) for kind, key in (("prefill", 512), ("decode", 0))]
    times = [shown(over_rounds(document, ratio(own, theirs)), "x") for own, theirs in pairs]
    if peer is not None:
        yield f"against llama.cpp with {' and '.join(PEERS.values())}: prompt of 512; decoding", "; ".join(times)
    yield from _row("whole process of `cg-local fill` with nano, 32 tokens", over_rounds(document, warm_fill), "s")


def _row(label: str, found: Spread | None, unit: str, share: Spread | None = None) -> Iterator[tuple[str, str]]:
    if found is not None:
        yield label, shown(found, unit) + (f"; {100 * share['median']:.0f} %" if share is not None else "")


if __name__ == "__main__":
    sys.exit(main())
