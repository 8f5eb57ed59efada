"""`cg-local export`: published weights as one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cg_local.cli.published import checkpoint_path, progress_bar
from cg_local.cli.render import notice, write_stdout


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Published weights: a folder, a GGUF file, or an embedded name.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to write.")],
    float32: Annotated[
        bool, typer.Option("--float32", help="Widen matrices of 16 bits to 32; the values stay.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.gguf.")] = False,
) -> None:
    """Write published weights as a GGUF file, for llama.cpp and what is built on it.

    The file holds the very values of SOURCE, the tokenizer and the chat template. It appears whole or not at all.
    Needs the extra gguf: pip install 'cg-local[gguf]'.

    \b
    Examples:
      cg-local export ~/Downloads/codegemma-2b codegemma-2b.gguf
      cg-local export nano nano.gguf --float32
    """
    from cg_local.checkpoint import open_checkpoint
    from cg_local.errors import ExportError
    from cg_local.gguf_export import export_gguf
    from cg_local.memory import readable_size

    if destination.is_dir():
        raise ExportError(f"{destination}: is a folder; name the file to write")
    if destination.exists() and not overwrite:
        raise ExportError(f"{destination}: exists; choose another name or pass --overwrite")
    checkpoint = open_checkpoint(checkpoint_path(source))
    if destination.exists() and any(destination.samefile(path) for path in checkpoint.source_files):
        raise ExportError(f"{destination}: is the source itself; choose another name")
    for text in checkpoint.notices:
        notice(text)
    with progress_bar() as on_progress:
        export_gguf(checkpoint, destination, is_widened=float32, on_progress=on_progress)
    write_stdout(
        f"{destination}: {len(checkpoint.tensor_names)} tensors, {readable_size(destination.stat().st_size)}\n"
    )
