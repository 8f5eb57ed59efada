#!/usr/bin/env python3
"""Engine against reference on one checkpoint: divergence of the next-token distributions and top-1 agreement.

This file owns the comparison and its figures. It does not decide what is good enough. Invariant: both sides see the
same token ids, each window from its BOS on; the reference is float32 NumPy straight from the published weights.

    python benchmarks/engine_parity.py --checkpoint nano --text src/module.py --tokens 1024
    python benchmarks/engine_parity.py --checkpoint random-2b-4-layers --tokens 256 --work quantized

The table goes to stderr, the result to stdout as one line of JSON. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from model_loading import load, model_path, one_line, quantized_folder
from numpy.typing import NDArray

from cg_local import reference
from cg_local.bench.cards import machine_card, model_card
from cg_local.checkpoint import open_checkpoint
from cg_local.config import EngineConfig, ModelConfig
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.errors import CgLocalError, PromptError
from cg_local.model import ACTIVATIONS
from cg_local.model_folder import open_model_folder
from cg_local.tokenizer import Tokenizer

Floats = NDArray[np.float32]

SCHEMES = ("bf16", "q8", "q4")
KV_DTYPES = ("float32", "float16", "int8")
FIRST_RANDOM_ID = 512  # behind control ids, white space and bytes in CodeGemma's layout


@dataclass(frozen=True)
class Parity:
    """How far one distribution of the next token is from another; natural logarithms, one value a token.

    Attributes:
        num_tokens: positions compared.
        kl_mean, kl_max: Kullback-Leibler divergence of the engine from the reference, in nats.
        top1_agreement: fraction of positions where the likeliest token is the same.
        margin_max: where they differ, the largest logarithm of how much likelier the reference holds its own choice
            than the engine's; 0 if they never differ. A margin like 0.01 is a tie that rounding decides.
        logit_difference_max: largest absolute difference of logits over the range of the reference's logits.
        perplexity_reference, perplexity_engine: of the windows' own tokens; None where they are random.
    """

    num_tokens: int
    kl_mean: float
    kl_max: float
    top1_agreement: float
    margin_max: float
    logit_difference_max: float
    perplexity_reference: float | None
    perplexity_engine: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, print the table and the result."""
    options = _parser().parse_args(arguments)
    try:
        result = compare(options)
    except (CgLocalError, OSError) as error:
        print(f"engine_parity: {one_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Compute the reference once, each scheme and K/V type against it, and describe the run."""
    folder = model_path(options.checkpoint)
    windows = choose_tokens(folder, options)
    source = open_checkpoint(folder)
    started = time.perf_counter()
    expected = [reference.logits(source, window) for window in windows]
    reference_seconds = time.perf_counter() - started
    rows = []
    print_head()
    for scheme in options.schemes:
        with quantized_folder(folder, scheme, options.work) as quantized:
            for computed_by, found in candidates(quantized, windows, options):
                parity = measure_parity(expected, found, windows if options.text else None)
                print_row(scheme, computed_by, parity)
                rows.append({"scheme": scheme, "computed_by": computed_by, **asdict(parity)})
    return {
        "benchmark": "engine_parity",
        "settings": {
            "tokens": sum(map(len, windows)),
            "windows": len(windows),
            "text": options.text.name if options.text else None,
            "seed": options.seed,
            "embedding_scale": "exact",
        },
        "model": model_card(folder),
        "machine": machine_card(),
        "reference_seconds": round(reference_seconds, 2),
        "parity": rows,
    }


def candidates(
    quantized: Path, windows: Sequence[Sequence[int]], options: argparse.Namespace
) -> Iterator[tuple[str, list[Floats]]]:
    """Give the logits of a model folder: by the engine with each type of K and V, and by the reference if asked for.

    The reference over dequantized weights shows the part of a divergence that the weights have, not the arithmetic.
    """
    if options.weights_alone:
        source = DequantizedFolder(open_model_folder(quantized))
        yield "reference", [reference.logits(source, window) for window in windows]
    for kv_dtype in options.kv_dtypes:
        config = EngineConfig(max_context=max(map(len, windows)), kv_dtype=kv_dtype, num_threads=options.threads)
        for activations in options.activations:
            engine = load(quantized, config, activations=activations).engine
            rounding = "" if activations == "int8" else f", {activations}"
            yield f"engine, {kv_dtype}{rounding}", [engine.logits(window) for window in windows]


def choose_tokens(folder: Path, options: argparse.Namespace) -> list[list[int]]:
    """Return windows that start with BOS: of a text's ids, or of uniformly drawn ones.

    Raises:
        PromptError: the text has too few tokens.
    """
    config = ModelConfig.from_file(folder / "config.json")
    body = options.window - 1
    num_windows = -(-options.tokens // options.window)
    if options.text:
        tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
        ids = tokenizer.encode(options.text.read_text(encoding="utf-8"))
        if len(ids) < num_windows * body:
            raise PromptError(f"{options.text}: {len(ids)} tokens, needed are {num_windows * body}; use a longer text")
    else:
        random = np.random.default_rng(options.seed)
        first = min(FIRST_RANDOM_ID, config.vocab_size // 2)
        ids = random.integers(first, config.vocab_size, num_windows * body).tolist()
    return [[config.bos_token_id, *ids[i * body : (i + 1) * body]] for i in range(num_windows)]


def measure_parity(
    expected: Sequence[Floats], found: Sequence[Floats], windows: Sequence[Sequence[int]] | None
) -> Parity:
    """Compare logits window by window.

    Args:
        expected, found: float32 [num_tokens, vocab_size] of each window, reference and engine.
        windows: the token ids, to compute perplexities; None where they mean nothing.
    """
    divergences, margins, differences = [], [], []
    losses: list[tuple[float, float]] = []
    for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        value_range = float(wanted.max() - wanted.min())
        for position, (a, b) in enumerate(zip(wanted, got, strict=True)):
            log_p, log_q = log_softmax(a), log_softmax(b)
            divergences.append(kl_divergence(log_p, log_q))
            # 0 also where the engine chose another of several exactly equal maxima.
            margins.append(float(log_p.max() - log_p[np.argmax(b)]))
            differences.append(float(np.abs(a - b).max()) / value_range)
            if windows is not None and position + 1 < len(windows[number]):
                next_id = windows[number][position + 1]
                losses.append((-log_p[next_id], -log_q[next_id]))
    perplexities = np.exp(np.mean(losses, axis=0)).tolist() if losses else (None, None)
    return Parity(
        num_tokens=len(divergences),
        kl_mean=float(np.mean(divergences)),
        kl_max=max(divergences),
        top1_agreement=float(np.mean(np.array(margins) == 0)),
        margin_max=max(margins),
        logit_difference_max=max(differences),
        perplexity_reference=perplexities[0],
        perplexity_engine=perplexities[1],
    )


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities, float64 [vocab_size]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def kl_divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> float:
    """Return sum p (log p - log q) in nats; rounding can make it as small as -1e-15."""
    return float(np.dot(np.exp(log_p), log_p - log_q))


def print_head() -> None:
    """Print the table's head to stderr."""
    head = f"{'scheme':<6} {'computed by':<22} {'tokens':>6} {'KL mean':>9} {'KL max':>9} {'top-1':>8} {'margin':>7}"
    print(head + f" {'logits max':>10} {'perplexity (reference)':>22}", file=sys.stderr)


def print_row(scheme: str, computed_by: str, parity: Parity) -> None:
    """Print one comparison to stderr."""
    p = parity
    figures = (
        f"{p.kl_mean:9.2e} {p.kl_max:9.2e} {p.top1_agreement:8.3%} {p.margin_max:7.4f} {p.logit_difference_max:10.2e}"
    )
    known = p.perplexity_reference is not None
    perplexity = f"{p.perplexity_engine:.4f} ({p.perplexity_reference:.4f})" if known else "-"
    print(f"{scheme:<6} {computed_by:<22} {p.num_tokens:>6} {figures} {perplexity:>22}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="nano", help="published weights, or a carried model's name (default: nano)")
    add("--schemes", type=_names(SCHEMES), default=SCHEMES, help="default: bf16,q8,q4")
    add("--kv-dtypes", type=_names(KV_DTYPES), default=KV_DTYPES, help="default: all three")
    add("--activations", type=_names(ACTIVATIONS), default=("int8",), help="beside 8-bit weights (default: int8)")
    add("--weights-alone", action="store_true", help="also run the reference over each scheme's weights; slow")
    add("--tokens", type=int, default=512, help="positions to compare (default: 512)")
    add("--window", type=int, default=256, help="tokens of a window, BOS included (default: 256)")
    add("--text", type=Path, metavar="FILE", help="take the tokens from this text (default: drawn at random)")
    add("--seed", type=int, default=0, help="of the random tokens (default: 0)")
    add("--threads", type=int, help="of the engine (default: all cores)")
    add("--work", type=Path, metavar="FOLDER", help="keep quantized weights here instead of in a temporary folder")
    return parser


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated names out of `known`."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
