"""Options of `cg-local fill` that do nothing together, refused before anything is read or loaded.

This file owns which options say what is done and shown, and which of them exclude each other; how the model answers
(sampling, sizes, threads) fits all of them, so that --top-p is taken at temperature 0, too: cli/README.md says what it
does there. Invariant: no option that says what is done or shown is passed over in silence.
tests/test_fill_conflicts.py holds the table of all pairs.
"""

from __future__ import annotations

from collections.abc import Collection

_WITH_UNDO = frozenset(("targets", "diff", "json", "undo", "forget"))
_SPELLED = {"candidates": "-n", "cache": "--no-cache"}
_NO_MODEL = "no model is asked then"
_BOTH_IN_JSON = "only one of them can be shown; add --json to get both"

# Two options and why they exclude each other.
_PAIRS: dict[tuple[str, str], str] = {
    **{("show_prompt", other): _NO_MODEL for other in ("explain", "untrimmed", "candidates", "all", "min_prob")},
    **{("show_prompt", other): _NO_MODEL for other in ("diff", "write")},
    ("all", "explain"): "--explain shows all candidates",
    ("all", "json"): "--json holds all candidates",
    ("all", "diff"): "a difference has one answer",
    ("all", "write"): "one answer is written",
    ("cache", "kv_cache_size"): "nothing is kept then",
}
# The same, where a document does not hold both.
_PAIRS_OF_TEXT = {
    ("explain", "untrimmed"): "--explain shows what was cut off, too",
    ("explain", "diff"): _BOTH_IN_JSON,
    ("explain", "write"): _BOTH_IN_JSON,
    ("untrimmed", "diff"): _BOTH_IN_JSON,
    ("untrimmed", "write"): "the trimmed answer is written; add --json to see the other",
}


def conflict(given: Collection[str], num_candidates: int, *, is_single: bool = True) -> str | None:
    """Find options that do nothing together.

    Args:
        given: parameters of the command whose options were typed, with another value than the default.
        num_candidates: wanted.
        is_single: one place is to be filled.

    Returns:
        What is wrong and what to do, or None.
    """
    if "forget" in given and ("undo" not in given or "diff" in given or "json" in given):
        return "--forget strikes a write from the journal and shows nothing: write --undo --forget [N] [FILE]..."
    if "undo" in given:
        spare = next((name for name in given if name not in _WITH_UNDO), None)
        return f"--undo takes back what was written and asks no model; leave {spelled(spare)} out" if spare else None
    pairs = _PAIRS if "json" in given else _PAIRS | _PAIRS_OF_TEXT
    for (one, other), reason in pairs.items():
        if one in given and other in given:
            return f"{spelled(one)} and {spelled(other)} do not go together: {reason}"
    if "all" in given and num_candidates == 1:
        return "--all needs several candidates: add -n 3"
    if num_candidates > 1 and not is_single:
        return "-n is for one place, whose answers one chooses from; leave it out, or fill one place after the other"
    return None


def spelled(parameter: str) -> str:
    """Return an option as it is typed."""
    return _SPELLED.get(parameter, f"--{parameter.replace('_', '-')}")
