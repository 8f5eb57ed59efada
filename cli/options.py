"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import typer


class Mode(str, Enum):
    """How much to write into a gap."""

    auto = "auto"
    line = "line"
    block = "block"


class Order(str, Enum):
    """The order of the text around a gap in the prompt."""

    psm = "psm"
    spm = "spm"


class Scheme(str, Enum):
    """How weights are quantized."""

    q4 = "q4"
    q8 = "q8"
    bf16 = "bf16"


# Optional[...] and not `... | None`: Typer evaluates these at run time, on Python 3.10 with every version of it.
Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Embedded name, name in the data folder, or model folder.")
]
OptionalScheme = Annotated[
    Optional[Scheme], typer.Option("--scheme", help="How to quantize the embedded model; a model folder has its own.")  # noqa: UP045
]
Json = Annotated[bool, typer.Option("--json", help="Print one compact JSON document instead of the text.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the most probable token.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Choose among the k most probable tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Choose among the tokens that make up this probability.")
]
MinP = Annotated[float, typer.Option("--min-p", min=0.0, max=1.0, help="Drop tokens below this share of the best.")]
RepetitionPenalty = Annotated[
    float,
    typer.Option("--repetition-penalty", min=0.0, help="Divisor of tokens seen before; 1 is off, and best for code."),
]
Seed = Annotated[Optional[int], typer.Option("--seed", min=0, help="Makes sampling repeatable.")]  # noqa: UP045
Threads = Annotated[
    Optional[int], typer.Option("--threads", min=1, help="Threads of the kernels; default: every processor.")  # noqa: UP045
]
ContextTokens = Annotated[
    int,
    typer.Option("--context-tokens", min=32, help="Tokens of the prompt at most; the nearest text is kept."),
]
