"""The parameters of `cg-local fill`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Optional

import typer

from cg_local.cli.options import Mode, ModelArguments, Order

Targets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="FILE:LINE[:COL]", show_default=False, help="Where to write; or FILE:FIRST-LAST, -:LINE, or -."
    ),
]
Path = Annotated[Optional[str], typer.Option("--path", help="The file's name for the model; default: FILE.")]  # noqa: UP045
ModeOption = Annotated[Mode, typer.Option("--mode", help="How much to write: the line, the block, or what fits.")]
OrderOption = Annotated[
    Optional[Order],  # noqa: UP045
    typer.Option("--order", help="Order of the prompt; default: what suits the model, mostly psm."),
]
Untrimmed = Annotated[bool, typer.Option("--untrimmed", help="Print what the model wrote, uncut; with --json both.")]
Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Keep what was computed of the prompt on disk, for the next fill.")
]
Candidates = Annotated[
    int,
    typer.Option("-n", "--candidates", min=1, max=16, help="Write so many for one place, and let the best be chosen."),
]
All = Annotated[bool, typer.Option("--all", help="Write all candidates, the best first; NUL between them in a pipe.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show each token's probability and what else was likely.")]
MinProb = Annotated[
    float,
    typer.Option(
        "--min-prob",
        min=0.0,
        max=1.0,
        help="Hide answers whose tokens are less probable in the mean; status 3 where a place has no other.",
    ),
]


class Context(str, Enum):
    """Which other files the model sees."""

    auto = "auto"
    repo = "repo"
    file = "file"


def _seconds(value: Optional[str]) -> Optional[str]:  # noqa: UP045
    if value is not None:
        seconds_of(value)
    return value


def seconds_of(text: str) -> float:
    """Read "3s", "500ms" or "3" as seconds.

    Raises:
        typer.BadParameter: it is none of them, or no time above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)\s*", text)
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not seconds > 0:
        raise typer.BadParameter(f"{text!r} is no time; write 3s or 500ms.", param_hint="--max-wait")
    return seconds


ContextOption = Annotated[
    Context,
    typer.Option(
        "--context", help="Other files for the model: of the repository, none, or the repository's where that pays."
    ),
]
ContextTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--context-tokens",
        min=32,
        help="Tokens of the prompt at most; the nearest text is kept. Default: 2048, of nano 448.",
    ),
]
MaxWait = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--max-wait",
        metavar="TIME",
        callback=_seconds,
        help="Shorten the prompt to what this machine reads in so long, such as 3s.",
    ),
]
ShowPrompt = Annotated[
    bool,
    typer.Option("--show-prompt", help="Print what the model would see, and the tokens of its parts; ask nothing."),
]
Diff = Annotated[bool, typer.Option("--diff", help="Print what changes, as a unified diff, in place of the text.")]
Write = Annotated[bool, typer.Option("--write", help="Write the answer into the file; --undo takes it back.")]
Undo = Annotated[
    bool,
    typer.Option(
        "--undo",
        help="Take the last write in this git work tree (else this folder) back, or the last N, of these files: "
        "[N] [FILE]...",
    ),
]
Forget = Annotated[
    bool, typer.Option("--forget", help="With --undo: strike the write from the journal, and leave the file as it is.")
]


@dataclass(frozen=True)
class FillArguments(ModelArguments):
    """The parameters of the command, as its help describes them."""

    targets: list[str] | None
    path: str | None
    mode: Mode
    order: Order | None
    candidates: int
    all: bool
    explain: bool
    min_prob: float
    model: str
    max_tokens: int
    context_tokens: int | None
    cache: bool
    context: Context
    max_wait: str | None
    show_prompt: bool
    untrimmed: bool
    diff: bool
    write: bool
    undo: bool
    forget: bool

    @property
    def is_held_back(self) -> bool:
        """Whether an answer is shown as a whole, or not as text, and so not while it comes."""
        return self.json or self.explain or self.untrimmed or self.diff or self.write or self.min_prob > 0

    @property
    def num_shown(self) -> int:
        """How many of the most probable tokens an answer brings at each of its own."""
        if not self.explain:
            return 0
        from cg_local.cli.explain import NUM_ALTERNATIVES

        return NUM_ALTERNATIVES + 1

    def prompt_tokens(self, model: str) -> int:
        """Tokens of the prompt at most, by default what suits the model of this name."""
        from cg_local.prompt_budget import default_prompt_tokens

        return self.context_tokens or default_prompt_tokens(model)
