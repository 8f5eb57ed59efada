"""Options of `cg-local quantize` that do nothing together, refused before anything is read.

This file owns which options of the rounding go together; what is impossible for a model is the quantizer's to say.
Invariant: no option that a person typed is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Collection

_OF_TEXTS = ("corpus", "tokens", "window")


def conflict(typed: Collection[str], method: str | None, scheme: str) -> str | None:
    """Find options that do nothing together.

    Args:
        typed: parameters of the command whose options stand on the command line.
        method: "fast", "imp" or "gptq"; None: not given.
        scheme: name of the scheme; it counts where no number of bits is typed.

    Returns:
        What is wrong and what to do, or None.
    """
    has_bits = "bits_per_weight" in typed
    if has_bits and "scheme" in typed:
        return "--scheme and --bits-per-weight do not go together: a scheme has its own size; leave one of them out"
    if method != "gptq":
        spare = next((name for name in _OF_TEXTS if name in typed), None)
        if spare is not None:
            return f"--{spare} does nothing without --method gptq, which alone reads texts"
    if scheme == "bf16" and not has_bits:
        spare = next((name for name in ("method", "importance") if name in typed), None)
        if spare is not None:
            return f"--scheme bf16 and --{spare} do not go together: bf16 rounds by no method; leave one of them out"
    if "importance" in typed and method == "fast":
        return "--method fast and --importance do not go together: fast rounds without a pack; leave one of them out"
    if "importance" in typed and method == "gptq" and not has_bits:
        return "--importance does nothing with --method gptq, which takes its own statistics, but for --bits-per-weight"
    return None
