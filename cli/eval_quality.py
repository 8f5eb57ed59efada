"""`cg-local eval quality`: how far quantized models are from the published weights."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import Status, notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.quality.models import ComparedModel, Reference


class Activations(str, Enum):
    """How inputs of products with 8-bit weights are rounded."""

    int8 = "int8"
    int16 = "int16"


ReferenceName = Annotated[
    str, typer.Argument(metavar="REFERENCE", help="Published weights: a folder, a GGUF file, or an embedded name.")
]
ModelNames = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Model folders and GGUF files made from them, or published weights."),
]
Baseline = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--baseline", metavar="MODEL", help="Also show every figure over this model's, on the same tokens."),
]
KvDtypes = Annotated[
    Optional[list[options.KvDtype]],  # noqa: UP045
    typer.Option("--kv-dtype", help="How engines keep K and V, may be repeated; default: float16."),
]
ActivationsOption = Annotated[
    Optional[list[Activations]],  # noqa: UP045
    typer.Option("--activations", help="How this engine rounds inputs of 8-bit weights, may be repeated."),
]
States = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--states", metavar="FILE", help="Keep the reference's states here; default: in the cache."),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", metavar="FILE.json", help="Write everything that was measured."),
]
Plot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--plot", metavar="FILE", help="Draw divergence against bytes: .png, .svg or .pdf."),
]


def eval_quality(
    reference: ReferenceName,
    models: ModelNames,
    corpus: options.Corpus = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens of the texts; the last may go beyond.")
    ] = 16384,
    window: options.WindowTokens = 512,
    baseline: Baseline = None,
    kv_dtype: KvDtypes = None,
    activations: ActivationsOption = None,
    peer_python: options.PeerPython = None,
    threads: options.Threads = None,
    states: States = None,
    output: Output = None,
    plot: Plot = None,
    json: options.Json = False,
) -> None:
    """Compare models with the published weights they were made from, token by token.

    Two comparisons: format-only, with the weights dequantized and all arithmetic in float32; and end to end, as
    cg-local runs a model folder and, with --peer-python, as llama.cpp runs a GGUF file. Texts are code, gaps to fill,
    prose and chat that calibration never sees; intervals are 95 %, over files.

    \b
    Examples:
      cg-local eval quality ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4
      cg-local eval quality nano nano-q4 nano-q8 --output quality.json
      cg-local eval quality nano nano-q4 nano-q4_k_m.gguf --baseline nano-q4_k_m.gguf --peer-python ~/llama/bin/python
    """
    from cg_local.bench.setup import check_places
    from cg_local.quality.places import Places
    from cg_local.quality.report import Options, measure
    from cg_local.quant.corpora import evaluation_corpus

    check_places(output, plot)
    names, place = with_baseline(models, baseline)
    status = Status()
    try:
        status.show(f"opening {reference}")
        opened = _reference(reference, window)
        compared = [_compared(name, opened) for name in names]
        if peer_python is None and any(model.kind == "GGUF" for model in compared):
            notice("GGUF files are compared format-only; --peer-python has llama.cpp run them")
        status.show("choosing texts")
        texts = evaluation_corpus(opened.tokenizer, corpus, num_tokens=tokens, window_tokens=window)
        others = {} if place is None else {index: place for index in range(len(names)) if index != place}
        chosen = Options(
            kv_dtypes=tuple(each.value for each in kv_dtype or [options.KvDtype.float16]),
            activations=tuple(each.value for each in activations or [Activations.int8]),
            num_threads=threads,
            peer_python=peer_python,
            baselines=others,
            states=states,
        )
        document = measure(opened, Places(texts), compared, chosen, say=status.show)
    finally:
        status.clear()
    _deliver({**document, "window_tokens": window, "machine": _machine()}, output, plot, is_printed=json)


def with_baseline(models: list[str], baseline: str | None) -> tuple[list[str], int | None]:
    """Return the models with the baseline, each once however it is spelled, and the baseline's index."""
    if baseline is None:
        return models, None
    found = _place(baseline)
    for index, name in enumerate(models):
        if _place(name) == found:
            return models, index
    return [*models, baseline], len(models)


def _place(name: str) -> Path:
    from cg_local.model_store import find_model

    return Path(os.path.realpath(find_model(name).path))


def _reference(name: str, window: int) -> Reference:
    from cg_local.errors import QualityError
    from cg_local.model_store import find_model
    from cg_local.quality.models import open_reference

    opened = open_reference(name, find_model(name).path)
    limit = opened.checkpoint.config.max_position_embeddings
    if window > limit:
        raise QualityError(f"--window {window}: {name} takes texts of {limit:,} tokens at most; ask for shorter ones")
    return opened


def _compared(name: str, reference: Reference) -> ComparedModel:
    from cg_local.model_store import find_model
    from cg_local.quality.models import open_compared

    return open_compared(find_model(name).path, reference)


def _machine() -> dict[str, Any]:
    from cg_local.bench.cards import machine_card

    return machine_card()


def _deliver(document: dict[str, Any], output: Path | None, plot: Path | None, *, is_printed: bool) -> None:
    from cg_local.bench.setup import write_document
    from cg_local.quality.plot import write_plot
    from cg_local.quality.table import report

    if output is not None:
        write_document(document, output)
    if plot is not None:
        write_plot(document, plot)
    if is_printed:
        print_json(document)
    else:
        write_stdout(report(document))
