"""Raw rounds to figures: rates, ratios between things measured in the same round, shares of the machine's limits.

This file owns the meaning of each figure. It measures and shows nothing. Invariant: a ratio pairs two measurements of
one round; its spread is that of the rounds, so that a machine that changes its pace in between does not count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cg_local.bench.engines import OWN_NAME
from cg_local.bench.figures import Spread, spread

Document = Mapping[str, Any]
Round = Mapping[str, Any]
# A figure of one round; None: not measured in it.
Figure = Callable[[Round], float | None]


def rate(engine: str, kind: str, key: int) -> Figure:
    """Return tokens a second.

    Args:
        engine: its name.
        kind: "prefill", "decode" or "batch".
        key: length, depth or number of sequences.
    """

    def of(figures: Round) -> float | None:
        return record_rate(figures.get(engine, {}).get(kind, {}).get(str(key)))

    return of


def record_rate(record: Mapping[str, Any] | None) -> float | None:
    """Return tokens a second of a timed record."""
    return record["tokens"] / sum(record["seconds"]) if record else None


def ratio(of: Figure, to: Figure) -> Figure:
    """Return one figure over another of the same round."""

    def quotient(figures: Round) -> float | None:
        above, below = of(figures), to(figures)
        return None if above is None or below is None else above / below

    return quotient


def bandwidth(figures: Round) -> float | None:
    """Return the read bandwidth of a round with all threads, in bytes a second."""
    rates = figures.get("roofline", {}).get("read_gb_per_second")
    return 1e9 * rates[max(rates, key=int)]["median"] if rates else None


def int8_peak(figures: Round) -> float | None:
    """Return the int8 operations a second of a round with all threads."""
    rates = figures.get("roofline", {}).get("int8_gops_per_second")
    return 1e9 * rates[max(rates, key=int)]["median"] if rates else None


def bandwidth_share(document: Document, depth: int) -> Figure:
    """Return decode at a depth as a share of the bandwidth: tokens a second times what one token must read."""
    num_bytes = document["bytes_per_token"].get(str(depth))

    def of(figures: Round) -> float | None:
        share = ratio(rate(OWN_NAME, "decode", depth), bandwidth)(figures)
        return None if share is None or num_bytes is None else share * num_bytes

    return of


def peak_share(document: Document, engine: str, length: int) -> Figure:
    """Return a prompt's operations a second as a share of the int8 peak."""
    operations = document["prefill_operations"].get(str(length))

    def of(figures: Round) -> float | None:
        share = ratio(rate(engine, "prefill", length), int8_peak)(figures)
        return None if share is None or operations is None else share * operations / length

    return of


def beside_busy_cores(figures: Round) -> float | None:
    """Return decode beside busy cores over decode alone."""
    busy = record_rate(figures.get(OWN_NAME, {}).get("decode_beside_busy_cores"))
    idle = rate(OWN_NAME, "decode", 0)(figures)
    return None if busy is None or idle is None else busy / idle


def prompt_lookup(figures: Round) -> float | None:
    """Return the median over the edits of how many times as fast they are written with guessed tokens."""
    edits = figures.get(OWN_NAME, {}).get("prompt_lookup", {}).values()
    gains = [sum(edit["plain"]["seconds"]) / sum(edit["guessed"]["seconds"]) for edit in edits]
    return spread(gains)["median"] if gains else None


def cold_fill(figures: Round) -> float | None:
    """Return the seconds of a fill that finds nothing compiled, as a whole process."""
    record = figures.get("fill", {}).get("cold")
    return float(record["seconds"]) if record else None


def warm_fill(figures: Round) -> float | None:
    """Return the median seconds of a fill that finds everything compiled, as a whole process."""
    seconds = [record["seconds"] for record in figures.get("fill", {}).get("warm", [])]
    return spread(seconds)["median"] if seconds else None


def over_rounds(document: Document, figure: Figure) -> Spread | None:
    """Return median, min and max of a figure over the rounds; None where no round has it."""
    values = [value for value in map(figure, document["rounds"]) if value is not None]
    return spread(values) if values else None


def warm_load(document: Document, engine: str) -> Spread | None:
    """Return the seconds of loading, the first time left out: it may have read the file from the disk."""
    loads = document["engines"].get(engine, {}).get("load_seconds", [])
    seconds = [value for value in loads[1:] if value is not None]
    return spread(seconds) if seconds else None


def peer_names(document: Document) -> Sequence[str]:
    """Return the names of the engines beside this one."""
    return [name for name in document["engines"] if name != OWN_NAME]


def peer_of(document: Document, kind: str) -> str | None:
    """Return the peer that runs a quantization; llama.cpp in a worker before its own benchmark program."""
    found = [name for name in peer_names(document) if name.endswith(f" {kind}")]
    return min(found, key=lambda name: not name.startswith("llama.cpp"), default=None)
