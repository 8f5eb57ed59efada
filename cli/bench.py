"""`cg-local bench`: speed beside the machine's limits and beside other engines."""

from __future__ import annotations

import sys
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
_PEER_KINDS = ("Q4_0", "Q4_K_M", "Q8_0")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers such as 128,512.") from None
    if any(number < 0 for number in numbers):
        raise typer.BadParameter(f"{text!r} has a number below 0.")
    return tuple(sorted(set(numbers)))


def _kinds(text: str) -> tuple[str, ...]:
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
PeerPython = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--peer-python", metavar="PATH", help="Interpreter that has llama-cpp-python."),
]
PeerModels = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--peer-models", metavar="FOLDER", help="GGUF files of the same weights; missing ones are made."),
]
PeerKinds = Annotated[str, typer.Option("--peer-kinds", metavar="LIST", help="Quantizations of the peers.")]
PeerTokens = Annotated[int, typer.Option("--peer-tokens", min=1, help="Longest prompt and context of the peers.")]
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
    threads: options.Threads = None,
    prefill: Prefill = None,
    depths: Depths = None,
    batch: Batch = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens timed at a depth.")] = 32,
    peers: Annotated[bool, typer.Option("--peers", help="Measure llama.cpp in the same rounds.")] = False,
    peer_python: PeerPython = None,
    peer_models: PeerModels = None,
    peer_kinds: PeerKinds = "Q4_0,Q4_K_M,Q8_0",
    peer_tokens: PeerTokens = 2048,
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
      cg-local bench ./codegemma-2b-q4 --peers --peer-python ~/llama/bin/python --checkpoint ./codegemma-2b
    """
    from cg_local.bench.plot import check_plot, write_plot
    from cg_local.bench.setup import check_destination, prepared, write_document
    from cg_local.bench.table import report

    if plot is not None:
        check_plot(plot)
    for path in (json, plot):
        if path is not None:
            check_destination(path)
    plan = _plan(quick, rounds, threads, (prefill, depths, batch), new_tokens, seed)
    chosen = _peers(peers, peer_kinds, peer_python, peer_models, checkpoint, peer_tokens)
    status = _Progress()

    def keep(document: Document) -> None:
        if json is not None:
            write_document(document, json)

    try:
        scheme_name = scheme.value if scheme else None
        with prepared(model, scheme_name, plan, chosen, say=status.say, notice=status.notice, on_round=keep) as session:
            document = session.run()
    finally:
        status.clear()
    keep(document)
    if plot is not None and document["rounds"]:
        write_plot(document, plot)
    write_stdout(report(document))
    if document["is_interrupted"]:
        raise typer.Exit(INTERRUPTED)


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
    is_quick: bool,
    rounds: int,
    threads: int | None,
    lists: tuple[str | None, str | None, str | None],
    new_tokens: int,
    seed: int,
) -> Plan:
    from cg_local.bench.session import Plan

    defaults = _QUICK if is_quick else _FULL
    prefill, depths, batches = (
        default if text is None else _numbers(text) for text, default in zip(lists, defaults, strict=True)
    )
    return Plan(
        rounds=1 if is_quick else rounds,
        num_threads=threads,
        prefill=tuple(length for length in prefill if length),
        depths=depths,
        batches=tuple(size for size in batches if size),
        new_tokens=new_tokens,
        seed=seed,
        has_processes=not is_quick,
    )


def _peers(
    is_wanted: bool, kinds: str, python: str | None, folder: Path | None, checkpoint: Path | None, max_tokens: int
) -> Peers:
    from cg_local.bench.setup import Peers

    if not is_wanted:
        return Peers()
    return Peers(_kinds(kinds), python, folder, checkpoint, max_tokens)
