"""Options that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from cg_local.cli.render import report_error


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
    q4s = "q4s"
    q8 = "q8"
    bf16 = "bf16"


class KvDtype(str, Enum):
    """How keys and values are kept."""

    float16 = "float16"
    float32 = "float32"
    int8 = "int8"


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def _above_zero(value: float) -> float:
    if not value > 0:
        raise typer.BadParameter(f"{value} is not above 0.")
    return _finite(value)


def _within_processors(value: Optional[int]) -> Optional[int]:  # noqa: UP045
    # Numba's own variable may allow more, or fewer; the engine judges by it.
    num_processors = os.cpu_count()
    if value and num_processors and value > num_processors and "NUMBA_NUM_THREADS" not in os.environ:
        raise typer.BadParameter(f"{value} is more than the {num_processors} processors of this machine.")
    return value


# Optional[...] and not `... | None`: Typer evaluates these at run time, on Python 3.10 with every version of it.
Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Embedded name, name in the data folder, or model folder.")
]
OptionalScheme = Annotated[
    Optional[Scheme], typer.Option("--scheme", help="How to quantize the embedded model; a model folder has its own.")  # noqa: UP045
]
Json = Annotated[bool, typer.Option("--json", help="Print one compact JSON document instead of the text.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to write at most.")]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        min=0.0,
        callback=_finite,
        help="0 takes the most probable token, whatever --top-k, --top-p, --min-p and --seed say.",
    ),
]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Choose among the k most probable tokens; 0: all.")]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", max=1.0, callback=_above_zero, help="Choose among the tokens that make up this probability."
    ),
]
MinP = Annotated[
    float, typer.Option("--min-p", min=0.0, max=1.0, callback=_finite, help="Drop tokens below this share of the best.")
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", callback=_above_zero, help="Divisor of tokens seen before; 1 is off, and best for code."
    ),
]
Seed = Annotated[Optional[int], typer.Option("--seed", min=0, max=2**64 - 1, help="Makes sampling repeatable.")]  # noqa: UP045
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--threads", min=1, callback=_within_processors, help="Threads of the kernels; default: one for each core."
    ),
]
Speculation = Annotated[
    bool,
    typer.Option(
        "--speculation/--no-speculation", help="Compute guessed tokens where that saves time; the answer is the same."
    ),
]
ContextTokens = Annotated[
    int,
    typer.Option("--context-tokens", min=32, help="Tokens of the prompt at most; the nearest text is kept."),
]
OptionalKvDtype = Annotated[
    Optional[KvDtype],  # noqa: UP045
    typer.Option("--kv-dtype", help="How K and V are kept; int8 halves their memory. Default: float16."),
]


def _size(value: str) -> str:
    from cg_local.settings import parsed_size

    try:
        parsed_size(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is no size; write 4GiB, 500MB, or 0 for none.") from None
    return value


KvCacheSize = Annotated[
    str,
    typer.Option(
        "--kv-cache-size",
        metavar="SIZE",
        callback=_size,
        help="Disk space that lets conversations and fills go on quickly in a new process; 0: none.",
    ),
]


def typed_parameters(context: typer.Context, *, with_defaults: bool = False) -> list[str]:
    """Return the parameters that stand on the command line with another value than the default, in its help's order.

    What comes from the settings does not count.

    Args:
        context: of the command.
        with_defaults: also those that were typed with the value that they have anyway.
    """
    typed = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        is_typed = source is not None and source.name == "COMMANDLINE"
        if is_typed and (with_defaults or context.params.get(parameter.name or "") != parameter.default):
            typed.append(parameter.name or "")
    return typed


def refuse_usage(message: str) -> NoReturn:
    """Tell that options contradict each other, in one line.

    Raises:
        Exit: with status 2.
    """
    report_error(message)
    raise typer.Exit(2)


@dataclass(frozen=True)
class ModelArguments:
    """The parameters that `fill` and `chat` share: which weights, how they run, how tokens are chosen."""

    scheme: Scheme | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    threads: int | None
    kv_dtype: KvDtype | None
    speculation: bool
    kv_cache_size: str
    json: bool

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How tokens are chosen, by the names of SamplingParams and of the chat's settings."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}


PeerPython = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--peer-python", metavar="PATH", help="Interpreter that has llama-cpp-python, which runs GGUF files."),
]
PublishedSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Published weights: a folder, a GGUF file, or an embedded name.")
]
Corpus = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--corpus", metavar="PATH", help="Texts, repeatable; default: the installed standard library."),
]
CalibrationTokens = Annotated[
    int, typer.Option("--tokens", min=64, help="Tokens of the texts; the last may go beyond.")
]
QuantizerThreads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Default: every processor. The result is the same for every number."),
]
WindowTokens = Annotated[int, typer.Option("--window", min=64, help="Tokens of one text at most.")]
