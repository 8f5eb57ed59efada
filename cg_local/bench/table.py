"""A document of figures as text for a terminal.

This file owns the form. It computes nothing that `summary` and `targets` do not. Invariant: every figure that comes
from rounds stands with its smallest and largest value.
"""

from __future__ import annotations

from collections.abc import Sequence

from cg_local.bench.engines import OWN_NAME
from cg_local.bench.figures import Spread
from cg_local.bench.summary import (
    Document,
    Figure,
    bandwidth,
    bandwidth_share,
    beside_busy_cores,
    cold_fill,
    int8_peak,
    over_rounds,
    peak_share,
    peer_names,
    prompt_lookup,
    rate,
    ratio,
    warm_fill,
    warm_load,
)
from cg_local.bench.targets import Target, is_for, targets

_DIGITS = {"x": 2, "s": 2, "": 1}


def report(document: Document) -> str:
    """Return the whole report: machine, limits, speeds, peers, memory and, where they apply, the targets."""
    parts = [_head(document), _limits(document), _speeds(document), _peers(document), _costs(document)]
    if is_for(document):
        parts.append(_targets(targets(document)))
    if document["is_interrupted"]:
        parts.append(["interrupted: these are the figures until then"])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def shown(found: Spread | None, unit: str = "") -> str:
    """Return a median with its spread, if there is one: "12.3 (12.1 to 12.4)"."""
    if found is None:
        return "-"
    factor, digits = (100, 0) if unit == "%" else (1, _DIGITS[unit])
    median, low, high = (f"{factor * found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    only = f"{median}{' ' + unit if unit else ''}"
    return only if found["min"] == found["max"] else f"{only} ({low} to {high})"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _head(document: Document) -> list[str]:
    machine, model = document["machine"], document["model"]
    rounds = len(document["rounds"])
    return [
        f"{model['name']} ({model['scheme']}, {model['num_parameters']:,} parameters)",
        f"{machine['processor']}, {machine['instruction_set']}, {document['num_threads']} threads; "
        f"median of {rounds} round{'s' if rounds != 1 else ''} (smallest to largest)",
    ]


def _limits(document: Document) -> list[str]:
    def line(name: str, figure: Figure, unit: str, factor: float) -> list[str]:
        found = over_rounds(document, figure)
        return [name, shown(found and {key: value / factor for key, value in found.items()}), unit]

    rows = [line("memory, read", bandwidth, "GB/s", 1e9), line("processor, int8", int8_peak, "10^9 operations/s", 1e9)]
    return ["the machine's limits", *aligned(rows)]


def _speeds(document: Document) -> list[str]:
    plan = document["plan"]
    rows = [[OWN_NAME, "tokens/s", "of the limit"]]
    for length in plan["prefill"]:
        share = over_rounds(document, peak_share(document, OWN_NAME, length))
        rows.append([_prompt(length), _own(document, "prefill", length), shown(share, "%")])
    for depth in plan["depths"]:
        share = over_rounds(document, bandwidth_share(document, depth))
        rows.append([_decode(depth), _own(document, "decode", depth), shown(share, "%")])
    for size in plan["batches"]:
        times = over_rounds(document, ratio(rate(OWN_NAME, "batch", size), rate(OWN_NAME, "batch", 1)))
        of_one = f"{shown(times, 'x')} of one" if size > 1 else ""
        rows.append([f"{size} sequence{'s' if size > 1 else ''}", _own(document, "batch", size), of_one])
    return aligned(rows)


def _own(document: Document, kind: str, key: int) -> str:
    return shown(over_rounds(document, rate(OWN_NAME, kind, key)))


def _peers(document: Document) -> list[str]:
    """One line for each peer and what it was measured with, and how many times as fast this engine was."""
    plan, rows = document["plan"], []
    measured = [("prefill", length, _prompt(length)) for length in plan["prefill"]]
    measured += [("decode", depth, _decode(depth)) for depth in plan["depths"]]
    for kind, key, label in measured:
        for peer in peer_names(document):
            theirs = over_rounds(document, rate(peer, kind, key))
            times = over_rounds(document, ratio(rate(OWN_NAME, kind, key), rate(peer, kind, key)))
            if theirs is not None:
                rows.append([label, peer, shown(theirs), shown(times, "x")])
    return aligned([["beside it", "", "tokens/s", f"{OWN_NAME} has"], *rows]) if rows else []


def _prompt(length: int) -> str:
    return f"prompt of {length:,}"


def _decode(depth: int) -> str:
    return f"decode after {depth:,}"


def _costs(document: Document) -> list[str]:
    rows = []
    for name, engine in document["engines"].items():
        load, memory = warm_load(document, name), engine.get("memory", {})
        peak = memory.get("peak_resident_bytes")
        if load is None and peak is None:
            continue
        text = f"{peak / 2**20:,.0f} MiB" if peak is not None else "-"
        rows.append([f"{name}: load, warm", shown(load, "s"), f"peak memory {text}"])
    for label, figure, unit, remark in (
        ("prompt lookup on edits", prompt_lookup, "x", "of one token a step"),
        ("decode beside busy cores", beside_busy_cores, "x", "of idle"),
        ("fill, nothing compiled", cold_fill, "s", "whole process"),
        ("fill, all compiled", warm_fill, "s", "whole process"),
    ):
        found = over_rounds(document, figure)
        if found is not None:
            rows.append([label, shown(found, unit), remark])
    return aligned(rows)


def _targets(rows: Sequence[Target]) -> list[str]:
    def limit(value: float, unit: str) -> str:
        return f"{100 * value:g} %" if unit == "%" else f"{value:g} {unit}"

    header = ["speed to reach", "measured", "floor", "goal", ""]
    cells = [
        [row.name, shown(row.found, row.unit), limit(row.floor, row.unit), limit(row.goal, row.unit), row.verdict]
        for row in rows
    ]
    return aligned([header, *cells])
