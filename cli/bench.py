"""`cg-local bench`: speed beside the machine's limits and beside other engines."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.app import INTERRUPTED
from cg_local.cli.render import Status, notice, write_stdout

if TYPE_CHECKING:
    from cg_local.bench.session import Document, Plan
    from cg_local.bench.setup import Peers

# Lengths of prompts, depths and sizes of batches where none are given.
_FULL = ((128, 512, 2048, 8000), (0, 2048, 8000), (1, 2, 4, 8, 16))
_QUICK = ((128,), (0,), (1, 4))
# What every row of `bench.targets` needs, and no more.
_BRIEF = ((512, 2048, 8000), (0, 2048, 8000), (1, 8))
_BRIEF_PEER_TOKENS, _PEER_TOKENS = 512, 2048
_PEER_KINDS = ("Q4_0", "Q4_K_M", "Q8_0")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers such as 128,512.") from None
    if any(number < 0 for number in numbers):
        raise typer.BadParameter(f"{text!r} has a number below 0.")
    return tuple(sorted(set(numbers)))


def _kinds(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    kinds = tuple(part.strip().upper() for part in text.split(",") if part.strip())
    unknown = [kind for kind in kinds if kind not in _PEER_KINDS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(_PEER_KINDS)}.")
    return kinds


Prefill = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--prefill", metavar="LIST", help="Lengths of prompts; default: 128,512,2048,8000."),
]
Depths = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--depths", metavar="LIST", help="Tokens of context before tokens are timed; default: 0,2048,8000."),
]
Batch = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--batch", metavar="LIST", help="Sequences that decode together; default: 1,2,4,8,16."),
]
PeerModels = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--peer-models", metavar="FOLDER", help="GGUF files of the same weights; missing ones are made."),
]
PeerKinds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--peer-kinds", metavar="LIST", help="Quantizations of the peers; default: Q4_0,Q4_K_M,Q8_0."),
]
PeerTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--peer-tokens", min=1, help="Longest prompt and context of the peers; default: 2048."),
]
SourceWeights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--checkpoint", metavar="FOLDER", help="Published weights to make missing GGUF files of."),
]
JsonFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--json", metavar="FILE", help="Write everything that was measured."),
]
PlotFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf."),
]


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Embedded name or model folder.")] = "nano",
    scheme: options.OptionalScheme = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each figure is the median of so many.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, without whole processes.")] = False,
    brief: Annotated[bool, typer.Option("--brief", help="One round of just what the speeds to reach need.")] = False,
    threads: options.Threads = None,
    prefill: Prefill = None,
    depths: Depths = None,
    batch: Batch = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens timed at a depth.")] = 32,
    peers: Annotated[bool, typer.Option("--peers", help="Measure llama.cpp in the same rounds.")] = False,
    peer_python: options.PeerPython = None,
    peer_models: PeerModels = None,
    peer_kinds: PeerKinds = None,
    peer_tokens: PeerTokens = None,
    checkpoint: SourceWeights = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random tokens.")] = 0,
    json: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Measure speed on this machine, beside what its memory and processor allow at most.

    An interrupt keeps what was measured. Close other programs: a busy core costs more than most of what is measured.

    \b
    Examples:
      cg-local bench
      cg-local bench ./codegemma-2b-q4 --json result.json --plot result.png
      cg-local bench ./codegemma-2b-q4 --brief
      cg-local bench ./codegemma-2b-q4 --peers --peer-python ~/llama/bin/python --checkpoint ./codegemma-2b
    """
    from cg_local.bench.plot import write_plot
    from cg_local.bench.setup import check_places, prepared, write_document
    from cg_local.bench.table import report

    check_places(json, plot)
    defaults = _defaults(quick, brief)
    plan = _plan((prefill, depths, batch), defaults, 1 if quick or brief else rounds, threads, new_tokens, seed)
    plan = replace(plan, has_processes=not quick)
    kinds, tokens = (("Q4_0",), _BRIEF_PEER_TOKENS) if brief else (_PEER_KINDS, _PEER_TOKENS)
    chosen = _peers(peers, _kinds(peer_kinds, kinds), peer_python, peer_models, checkpoint, peer_tokens or tokens)
    status = _Progress()

    def keep(document: Document) -> None:
        if json is not None:
            write_document(document, json)

    name = scheme.value if scheme else None
    try:
        with prepared(model, name, plan, chosen, say=status.say, notice=status.notice, on_round=keep) as session:
            document = session.run()
    finally:
        status.clear()
    keep(document)
    if plot is not None and document["rounds"]:
        write_plot(document, plot)
    write_stdout(report(document))
    if document["is_interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _defaults(is_quick: bool, is_brief: bool) -> tuple[tuple[int, ...], ...]:
    if is_quick and is_brief:
        raise typer.BadParameter("it leaves out what --brief measures; give one of them", param_hint="--quick")
    return _QUICK if is_quick else _BRIEF if is_brief else _FULL


class _Progress:
    """One line that is replaced on a terminal; elsewhere a line for each round."""

    def __init__(self) -> None:
        self._status = Status()
        self._is_terminal = sys.stderr.isatty()
        self._stage = ""

    def say(self, text: str) -> None:
        stage = text.partition(":")[0]
        if not self._is_terminal and stage != self._stage:
            notice(stage)
        self._stage = stage
        self._status.show(text)

    def notice(self, text: str) -> None:
        self._status.clear()
        notice(text)

    def clear(self) -> None:
        self._status.clear()


def _plan(
    lists: tuple[str | None, ...],
    defaults: tuple[tuple[int, ...], ...],
    rounds: int,
    threads: int | None,
    new_tokens: int,
    seed: int,
) -> Plan:
    from cg_local.bench.session import Plan

    prefill, depths, batches = (
        default if text is None else _numbers(text) for text, default in zip(lists, defaults, strict=True)
    )
    return Plan(
        rounds=rounds,
        num_threads=threads,
        prefill=tuple(length for length in prefill if length),
        depths=depths,
        batches=tuple(size for size in batches if size),
        new_tokens=new_tokens,
        seed=seed,
    )


def _peers(
    is_wanted: bool,
    kinds: tuple[str, ...],
    python: str | None,
    folder: Path | None,
    checkpoint: Path | None,
    max_tokens: int,
) -> Peers:
    from cg_local.bench.setup import Peers

    if not is_wanted:
        return Peers()
    return Peers(kinds, python, folder, checkpoint, max_tokens)
