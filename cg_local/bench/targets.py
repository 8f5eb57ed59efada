"""The speeds that this project set itself, and whether a run reached them.

This file owns floors and goals, for CodeGemma 2B's shape at q4. Invariant: a row without its measurement says so; it is
never met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cg_local.bench.engines import OWN_NAME
from cg_local.bench.figures import Spread
from cg_local.bench.summary import (
    Document,
    Figure,
    bandwidth_share,
    beside_busy_cores,
    cold_fill,
    over_rounds,
    peer_of,
    prompt_lookup,
    rate,
    ratio,
    warm_fill,
    warm_load,
)

# The fastest prefill measured of any engine, as a multiple of llama.cpp's with Q4_0 on the same machine (2 cores with
# AVX512-VNNI): OpenVINO 2026.4, int8 weights per channel, dynamic int8 activations. It is not measured here.
FASTEST_PREFILL = 1.94
MAIN_PEER = "Q4_0"
# What the targets were set for.
MODEL_LAYERS, MODEL_HIDDEN, MODEL_SCHEME = 18, 2048, "q4"


@dataclass(frozen=True)
class Target:
    """A figure with what it shall reach.

    Attributes:
        name: of the figure.
        floor: what is needed.
        goal: what is wanted.
        unit: "x" for a ratio, "%" for a share, "s" for seconds, of which less is better.
        found: measured; None: not in this run.
    """

    name: str
    floor: float
    goal: float
    unit: str
    found: Spread | None

    @property
    def verdict(self) -> str:
        """Say "goal met", "met" or "not met" by the median, or "not measured"."""
        if self.found is None:
            return "not measured"
        sign = -1 if self.unit == "s" else 1
        median = sign * self.found["median"]
        return "goal met" if median >= sign * self.goal else "met" if median >= sign * self.floor else "not met"


def targets(document: Document) -> list[Target]:
    """Return all rows for a document, those against peers by the instruction set that was in use."""
    rows = [*_against_peer(document), *_against_itself(document)]
    return [
        Target(name, floor, goal, unit, over_rounds(document, figure)) for name, floor, goal, unit, figure in rows
    ] + [Target("load, warm page cache", 0.5, 0.2, "s", warm_load(document, OWN_NAME))]


def is_for(document: Document) -> bool:
    """Whether the targets were set for the model that was measured."""
    model = document["model"]
    found = model["num_layers"], model["hidden_size"], model["scheme"]
    return bool(found == (MODEL_LAYERS, MODEL_HIDDEN, MODEL_SCHEME))


Row = tuple[str, float, float, str, Figure]


def _against_peer(document: Document) -> Sequence[Row]:
    peer = peer_of(document, MAIN_PEER) or f"llama.cpp {MAIN_PEER}"
    prefill = ratio(rate(OWN_NAME, "prefill", 512), rate(peer, "prefill", 512))
    decode = ratio(rate(OWN_NAME, "decode", 0), rate(peer, "decode", 0))
    if document["machine"]["instruction_set"] == "avx2":
        return [
            (f"prefill 512, against {peer} (AVX2)", 1.0, 1.5, "x", prefill),
            (f"decode, against {peer} (AVX2)", 1.0, 1.1, "x", decode),
        ]
    fastest = ratio(prefill, lambda figures: FASTEST_PREFILL)
    return [
        (f"prefill 512, against {peer}", 2.0, 2.6, "x", prefill),
        (f"prefill 512, against {FASTEST_PREFILL} x {peer}", 1.0, 1.3, "x", fastest),
        (f"decode, against {peer}", 1.1, 1.4, "x", decode),
    ]


def _against_itself(document: Document) -> Sequence[Row]:
    prefill = {length: rate(OWN_NAME, "prefill", length) for length in (512, 2048, 8000)}
    decode = {depth: rate(OWN_NAME, "decode", depth) for depth in (0, 2048, 8000)}
    batch = ratio(rate(OWN_NAME, "batch", 8), rate(OWN_NAME, "batch", 1))
    return [
        ("prefill 2048, against 512", 0.9, 0.95, "x", ratio(prefill[2048], prefill[512])),
        ("prefill 8000, against 512", 0.7, 0.8, "x", ratio(prefill[8000], prefill[512])),
        ("decode, share of read bandwidth", 0.9, 0.97, "%", bandwidth_share(document, 0)),
        ("decode at depth 2048, against 0", 0.92, 0.97, "x", ratio(decode[2048], decode[0])),
        ("decode at depth 8000, against 0", 0.8, 0.88, "x", ratio(decode[8000], decode[0])),
        ("8 sequences together, against one", 3.5, 5.0, "x", batch),
        ("prompt lookup on edits, against none", 1.5, 2.5, "x", prompt_lookup),
        ("decode beside busy cores, against idle", 0.35, 0.5, "x", beside_busy_cores),
        ("fill with nothing compiled (nano)", 25.0, 12.0, "s", cold_fill),
        ("fill with all compiled (nano)", 0.9, 0.6, "s", warm_fill),
    ]
