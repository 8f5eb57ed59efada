"""`cg-local calibrate`: what a model's inputs look like on texts, as a pack that `quantize` rounds by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.published import checkpoint_path, progress_bar
from cg_local.cli.render import notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.checkpoint import Checkpoint
    from cg_local.quant.corpora import Corpus
    from cg_local.quant.importance import ImportancePack

Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", metavar="FILE", help="Pack to write; default: SOURCE/importance.safetensors."),
]
Sensitivities = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--sensitivities",
        metavar="TOKENS",
        min=64,
        help="Also measure, on so many tokens, how much the output minds an error of each matrix.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the pack.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Discard what an interrupted run has done, instead of continuing it.")
]


def calibrate(
    source: options.PublishedSource,
    output: Output = None,
    corpus: options.Corpus = None,
    tokens: options.CalibrationTokens = 16384,
    window: options.WindowTokens = 512,
    sensitivities: Sensitivities = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    threads: options.QuantizerThreads = None,
    json: options.Json = False,
) -> None:
    """Let published weights read texts and write down what the inputs of each matrix look like.

    `cg-local quantize` finds the pack in SOURCE and rounds these weights, and no others, by it. Texts are code, gaps to
    fill, prose and chat from the installed standard library, or from --corpus; a share of the files is left for
    `cg-local eval quality`.
    --sensitivities runs the layers from each matrix's on once more; --bits-per-weight then knows where bits pay.

    Memory grows with --tokens: at most 3.1 GiB for 2B at the default, 4.7 GiB for 7B, no more with --sensitivities;
    what does not fit is refused before anything is computed. An interrupted run is continued by the same command, from
    the layer or the matrix it was at, to the same bytes.

    \b
    Examples:
      cg-local calibrate ~/Downloads/codegemma-2b
      cg-local calibrate ~/Downloads/codegemma-2b --corpus ~/src --tokens 32768 -o codegemma-2b.importance.safetensors
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.errors import QuantizeError
    from cg_local.models import EMBEDDED
    from cg_local.quant.importance import FILE_NAME

    path = checkpoint_path(source)
    checkpoint = open_checkpoint(path)
    if output is None and source in EMBEDDED:
        raise QuantizeError(f"{source} belongs to the package, which is not changed; name a file with --output")
    destination = output or (path if path.is_dir() else path.parent) / FILE_NAME
    if not destination.parent.is_dir():
        raise QuantizeError(f"{destination.parent}: no such folder; make it or choose another file")
    if destination.exists() and not destination.is_file():
        raise QuantizeError(f"{destination}: is a folder, a device or a pipe; name a file with --output")
    if destination.exists() and not overwrite:
        raise QuantizeError(f"{destination}: exists; choose another file or pass --overwrite")
    for found in checkpoint.notices:
        notice(found)
    texts, probes = _texts(checkpoint, corpus, tokens, sensitivities, window)
    pack = _made(checkpoint, destination, texts, probes, restart=restart, threads=threads)
    if json:
        own = {"file": str(destination), "weights": pack.weights, "sensitivities": dict(pack.sensitivities)}
        print_json({**own, **pack.document})
        return
    from cg_local.memory import readable_size

    size, read = readable_size(destination.stat().st_size), f"{texts.num_tokens:,} tokens of {len(texts.files):,} files"
    write_stdout(f"{destination}: {size}, {read}\n")


def _texts(
    checkpoint: Checkpoint, paths: list[Path] | None, tokens: int, sensitivities: int | None, window: int
) -> tuple[Corpus, Corpus | None]:
    """Choose the texts to read, and those to measure sensitivities on."""
    from cg_local.quant.corpora import calibration_corpus
    from cg_local.quant.methods import published_tokenizer

    tokenizer = published_tokenizer(checkpoint)

    def texts(num_tokens: int) -> Corpus:
        return calibration_corpus(tokenizer, paths, num_tokens=num_tokens, window_tokens=window)

    return texts(tokens), None if sensitivities is None else texts(sensitivities)


def _made(
    checkpoint: Checkpoint,
    destination: Path,
    corpus: Corpus,
    probes: Corpus | None,
    *,
    restart: bool,
    threads: int | None,
) -> ImportancePack:
    """Make the pack, with a bar on a terminal."""
    from cg_local.quant.calibration import calibrate as make_pack

    with progress_bar(counts_bytes=False) as on_step:
        return make_pack(
            checkpoint,
            destination,
            corpus,
            probes,
            restart=restart,
            on_step=on_step or (lambda done, total, what: None),
            on_notice=notice,
            num_threads=threads,
        )
