"""The parameters of `cg-local fill`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import typer

from cg_local.cli.options import KvDtype, Mode, Order, Scheme

Targets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="FILE:LINE[:COL]", show_default=False, help="Where to write; or FILE:FIRST-LAST, -:LINE, or -."
    ),
]
Path = Annotated[Optional[str], typer.Option("--path", help="The file's name for the model; default: FILE.")]  # noqa: UP045
ModeOption = Annotated[Mode, typer.Option("--mode", help="How much to write: the line, the block, or what fits.")]
OrderOption = Annotated[Order, typer.Option("--order", help="Order of the prompt; spm is experimental.")]
Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Keep what was computed of the prompt on disk, for the next fill.")
]
Diff = Annotated[bool, typer.Option("--diff", help="Print what changes, as a unified diff, in place of the text.")]
Write = Annotated[bool, typer.Option("--write", help="Write the answer into the file; --undo takes it back.")]
Undo = Annotated[
    bool, typer.Option("--undo", help="Take the last write back, or the last N, of these files: [N] [FILE]...")
]


@dataclass(frozen=True)
class FillArguments:
    """The parameters of the command, as its help describes them."""

    targets: list[str] | None
    path: str | None
    mode: Mode
    order: Order
    model: str
    scheme: Scheme | None
    max_tokens: int
    context_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    threads: int | None
    kv_dtype: KvDtype | None
    speculation: bool
    cache: bool
    kv_cache_size: str
    diff: bool
    write: bool
    undo: bool
    json: bool

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How tokens are chosen, by the names of SamplingParams."""
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}
