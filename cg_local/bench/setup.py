"""From what a person asked for to a session: the model's folder, the plan cut to its context, the peers' files.

This file owns those decisions and the writing of the document. It measures nothing. Invariant: what can be refused is
refused before the first measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cg_local.bench.cards import file_card, machine_card, model_card
from cg_local.bench.engines import LlamaBench, MeasuredEngine, OwnEngine, llama_engine
from cg_local.bench.peers import (
    INSTALL,
    check_sources,
    llama_bench,
    llama_worker,
    make_peer_files,
    own_python,
    peer_file,
)
from cg_local.bench.plot import check_plot
from cg_local.bench.roofline import Roofline
from cg_local.bench.session import Document, Plan, Session
from cg_local.errors import BenchmarkError
from cg_local.model_folder import ModelFolder, open_model_folder
from cg_local.model_store import FoundModel, cache_folder, find_model, ready_folder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Peers:
    """What is measured beside this engine.

    Attributes:
        kinds: quantizations of llama.cpp: "Q4_0", "Q4_K_M", "Q8_0"; empty: no peer.
        python: an interpreter that has llama-cpp-python; None: this one if it has; without,
            only a `llama-bench` on the PATH is measured.
        folder: with the GGUF files, or where they are made; None: the cache folder.
        checkpoint: the published weights that they are made of; None: the embedded model's.
        max_tokens: the longest prompt and context they are measured with; None: all.
    """

    kinds: tuple[str, ...] = ()
    python: str | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    max_tokens: int | None = None


@contextmanager
def prepared(
    model: str,
    scheme: str | None,
    plan: Plan,
    peers: Peers,
    *,
    say: Say,
    notice: Say,
    on_round: Callable[[Document], None],
) -> Iterator[Session]:
    """Give a session with every engine's process started; they end with the context.

    Args:
        model: embedded name, name in the data folder, or model folder.
        scheme: how to quantize an embedded model.
        plan: what is measured; what the model's context does not hold is left out with a notice.
        peers: what is measured beside it.
        say: told what is being done.
        notice: told what a person should know.
        on_round: given the document after every round.

    Raises:
        BenchmarkError: a peer, its files or its weights are missing or do not fit the model.
        CgLocalError: the model cannot be opened.
    """
    found = find_model(model)
    say(f"opening {found.name}")
    path = ready_folder(found, scheme)
    folder = open_model_folder(path)
    plan, left_out = plan.within(folder.config.max_position_embeddings)
    notices = []
    if left_out:
        limit = folder.config.max_position_embeddings
        notices.append(f"{found.name} was trained for {limit:,} tokens; left out: {', '.join(left_out)}")
    with ExitStack() as stack:
        engines: list[MeasuredEngine] = [OwnEngine(path)]
        stack.callback(engines[0].close)
        for peer in _peers(found, folder, peers, say, notices):
            stack.callback(peer.close)
            engines.append(peer)
        for text in notices:
            notice(text)
        cards: dict[str, Any] = {
            "model": {"name": Path(found.name).name, **model_card(path), "scheme": folder.scheme},
            "machine": machine_card(),
            "peer_files": {peer.name: file_card(peer.file) for peer in engines[1:]},
            "notices": notices,
        }
        yield Session(plan, folder.config, engines, cards=cards, roofline=Roofline(), say=say, on_round=on_round)


def check_places(document: Path | None, plot: Path | None) -> None:
    """Refuse files that could not be written, before anything is measured.

    Raises:
        BenchmarkError: as by `check_destination` and `plot.check_plot`.
    """
    if plot is not None:
        check_plot(plot)
    for path in (document, plot):
        if path is not None:
            check_destination(path)


def check_destination(path: Path) -> None:
    """Refuse a place that no result could be written to, before anything is measured.

    Raises:
        BenchmarkError: its folder does not exist or cannot be written, or it is a folder itself.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BenchmarkError(f"{path}: a result cannot be written there; name a file in a folder that you may write")


def write_document(document: Document, path: Path) -> None:
    """Write a document as JSON; the file is replaced whole.

    Raises:
        BenchmarkError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as cause:
        raise BenchmarkError(f"{path}: cannot be written ({cause.strerror}); choose another place") from cause


def read_document(path: Path) -> Document:
    """Read a document that `write_document` wrote.

    Raises:
        BenchmarkError: no such file, or no such document.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise BenchmarkError(f"{path}: no result of `cg-local bench` ({cause}); run it with --json") from cause
    if not isinstance(document, dict) or "rounds" not in document:
        raise BenchmarkError(f"{path}: no result of `cg-local bench`; run it with --json")
    return document


def _peers(
    found: FoundModel, folder: ModelFolder, peers: Peers, say: Say, notices: list[str]
) -> Iterator[MeasuredEngine]:
    if not peers.kinds:
        return
    program = llama_bench()
    peers = replace(peers, python=peers.python or own_python())
    if peers.python is None and program is None:
        raise BenchmarkError(f"no peer to measure: there is no llama-bench on the PATH; {INSTALL}")
    # A model given by its path has that for a name: not a place in the cache.
    digest = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    place = peers.folder or cache_folder() / "peers" / f"{folder.path.name}-{digest}"
    _make_files(found, place, peers, say)
    for kind in peers.kinds:
        file = peer_file(place, kind)
        if not file.is_file():
            raise BenchmarkError(
                f"{place}: no GGUF file whose name ends in {kind.lower()}; name the published weights by --checkpoint "
                "and an interpreter by --peer-python to have it made"
            )
        if peers.python is not None:
            unsure = check_sources(file, _recorded_sources(file, peers.python), folder.metadata.get("sources"))
            if unsure is not None:
                notices.append(unsure)
            yield llama_engine(kind, file, peers.python, peers.max_tokens)
        elif program is not None:
            notices.append(f"{file}: which weights it was made of was not checked: that takes --peer-python")
        if program is not None:
            yield LlamaBench(kind, file, program, peers.max_tokens)


def _make_files(found: FoundModel, place: Path, peers: Peers, say: Say) -> None:
    checkpoint = peers.checkpoint or (found.path if found.is_embedded else None)
    if checkpoint is not None and peers.python is not None:
        make_peer_files(checkpoint, place, peers.kinds, peers.python, say=say)


def _recorded_sources(file: Path, python: str) -> str | None:
    with llama_worker(python) as worker:
        sources = worker.ask("load", model=str(file), num_threads=1, max_context=64)["sources"]
    return None if sources is None else str(sources)
