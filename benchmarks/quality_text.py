"""The Markdown of a stored comparison of quality by bytes.

This file owns which rows and ratios are shown; `quality_table` measures and stores them. Invariant: a figure that is
shown is one of the stored result, or a ratio of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cg_local.quality.models import GGUF, PUBLISHED
from cg_local.quality.report import END_TO_END, FORMAT_ONLY
from cg_local.quality.table import label_of

Document = dict[str, Any]
# Name of a scheme -> the file type it is held against, the longest that fits a model's name first.
PAIRS: Mapping[str, str] = {"q4s": "q4_0", "q4": "q4_k_m", "q8": "q8_0"}
# README's rows: what they are called, the model's name in the result, how its activations are rounded.
README_ROWS = (
    ("llama.cpp Q4_0", "q4_0", None),
    ("`q4s`, method fast", "nano-q4s-fast", "int8"),
    ("`q4s`, imp", "nano-q4s-imp", "int8"),
    ("`q4s`, gptq", "nano-q4s-gptq", "int8"),
    ("formats chosen for Q4_0's bytes, imp", "nano-q4s-budget-imp", "int8"),
    ("llama.cpp Q4_K_M", "q4_k_m", None),
    ("llama.cpp Q4_K_M, imatrix", "imatrix-q4_k_m", None),
    ("formats chosen for Q4_K_M's bytes, imp", "nano-q4-budget-imp", "int8"),
    ("… gptq", "nano-q4-budget-gptq", "int8"),
    ("… for 0.93 of its bytes, imp", "nano-q4-93-imp", "int8"),
    ("llama.cpp Q8_0", "q8_0", None),
    ("`q8`, imp", "nano-q8-imp", "int8"),
    ('`q8`, imp, `activations="int16"`', "nano-q8-imp", "int16"),
)
# What 8-bit K and V add is shown of these: the weights nearest to the published ones, of which little else is seen.
KV_MODELS = ("nano-q8-imp", "q8_0")


def pairs(names: Sequence[str]) -> dict[int, int]:
    """Return, by the index of each of this project's models, that of the plain file type it is held against."""
    found = {}
    for index, name in enumerate(names):
        parts = name.lower().split("-")
        kind = next((PAIRS[scheme] for scheme in PAIRS if scheme in parts), None)
        target = next((i for i, other in enumerate(names) if other.lower() == kind), None)
        if target is not None and index != target:
            found[index] = target
    return found


def markdown(document: Document) -> str:
    """Return README's table: bytes, divergence of both comparisons, and ratios to the file type beside it."""
    group = next(iter(document["num_scored"]))
    lines = ["| model | MiB | bits a weight | KL, format alone | KL, as run | same top token | KL against |"]
    lines.append("| --- " * 7 + "|")
    sizes = {model["name"]: model["num_bytes"] for model in document["models"]}
    for model in sorted(document["models"], key=lambda model: model["num_bytes"]):
        if model["kind"] == PUBLISHED:
            continue
        plain, run = (first_of(model, kind) for kind in (FORMAT_ONLY, END_TO_END))
        name = f"llama.cpp {model['name']}" if model["kind"] == GGUF else f"**{model['name']}**"
        cells = [name, f"{model['num_bytes'] / 2**20:.2f}", f"{model['bits_per_weight']:.2f}"]
        cells += [with_interval(found["groups"][group]["kl_mean"]) if found else "-" for found in (plain, run)]
        cells.append(f"{(run or plain)['groups'][group]['top1_agreement']['value']:.1%}" if run or plain else "-")
        cells.append(ratio_text(model, run or plain, group, sizes))
        lines.append("| " + " | ".join(cells) + " |")
    added = [f"K and V in 8 bits add {text} to {name}." for name, text in added_by_kv(document, group).items()]
    return "\n\n".join(
        [introduction(document, group), "\n".join(lines), "\n".join([*added, equal_text(document, group)])]
    )


def equal_text(document: Document, group: str) -> str:
    """Return a line for each comparison: the bytes at equal divergence, over those of llama.cpp's plain files."""
    found = {kind: bytes_at_equal_divergence(document, kind, group) for kind in (FORMAT_ONLY, END_TO_END)}
    told = {
        kind: ", ".join(f"{label} {ratio:.2f}" for label, ratio in ratios.items()) for kind, ratios in found.items()
    }
    start = "Bytes at equal KL over llama.cpp's files without imatrix"
    return "\n".join(f"{start}, {kind}: {text or 'none in their range'}." for kind, text in told.items())


def readme_text(document: Document) -> str:
    """Return README's rows: size, both divergences, and the ratio to the file type beside it.

    Raises:
        ValueError: a row's model or its comparison is missing.
    """
    group = next(iter(document["num_scored"]))
    models = {model["name"]: model for model in document["models"]}
    missing = [name for _, name, _ in README_ROWS if name not in models]
    if missing:
        raise ValueError(f"the result has no {', '.join(missing)}")
    sizes = {name: model["num_bytes"] for name, model in models.items()}
    lines = [
        "| | bits a weight | KL, format alone | KL, as run | KL, as run, against |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, name, activations in README_ROWS:
        model = models[name]
        runs = (found for found in model["comparisons"] if found["comparison"] == END_TO_END)
        run = next((found for found in runs if found.get("activations") in (activations, None)), None)
        if run is None:
            inputs = f" with activations {activations}" if activations else ""
            raise ValueError(f"the row {label!r}: {name}{inputs} has no comparison {END_TO_END} in the result")
        plain = first_of(model, FORMAT_ONLY)
        cells = [label, f"{model['bits_per_weight']:.2f}"]
        cells += [with_interval(found["groups"][group]["kl_mean"]) if found else "-" for found in (plain, run)]
        cells.append(ratio_text(model, run, group, sizes))
        lines.append("| " + " | ".join(cells) + " |")
    lines += kv_rows(document, group)
    return introduction(document, group) + "\n\n" + "\n".join(lines)


def kv_rows(document: Document, group: str) -> list[str]:
    """Return README's row of 8-bit K and V: what they add to this project's weights, and to llama.cpp's.

    None in a result that was measured without.
    """
    models = {model["name"]: model for model in document["models"]}
    ours, theirs = KV_MODELS
    added = added_by_kv(document, group)
    if not {ours, theirs} <= added.keys():
        return []
    run = next(of_kv(models[ours]))["groups"][group]["kl_mean"]
    cells = ["`q8`, imp, int8 K and V", f"{models[ours]['bits_per_weight']:.2f}", "-", with_interval(run)]
    cells.append(f"adds {added[ours]}; llama.cpp's q8_0 K and V to Q8_0: {added[theirs]}")
    return ["| " + " | ".join(cells) + " |"]


def added_by_kv(document: Document, group: str) -> dict[str, str]:
    """Return, by model, what 8-bit K and V add to its divergence, with the paired interval."""
    found = {}
    for model in document["models"]:
        for comparison in of_kv(model):
            added = comparison["added_kl"][group]
            digits = max(0, 1 - math.floor(math.log10(max(added["high"] - added["low"], 1e-9) / 2)))
            low, high = (f"{added[name]:.{digits}f}" for name in ("low", "high"))
            found.setdefault(model["name"], f"{added['value']:.{digits}f} ({low} to {high})")
    return found


def introduction(document: Document, group: str) -> str:
    """Return what a table's divergences are of."""
    scored, documents = document["num_scored"][group], document["num_documents"][group]
    return (
        f"KL divergence from {document['reference']['name']}'s published weights in float32, in nats a token, over "
        f"{scored:,} held-out "
        f"tokens of code and gaps in {documents} files, with 95 % intervals over files."
    )


def of_kv(model: Document) -> Iterator[Document]:
    """Yield a model's comparisons that hold what 8-bit K and V add."""
    for comparison in model["comparisons"]:
        if comparison.get("kv_dtype") == "int8" and "added_kl" in comparison:
            yield comparison


def first_of(model: Document, comparison: str) -> Document | None:
    """Return a model's first comparison of a kind: float16 K and V, int8 activations."""
    return next((found for found in model["comparisons"] if found["comparison"] == comparison), None)


def with_interval(estimate: Mapping[str, float]) -> str:
    """Return a divergence and half of its interval with the digits that mean something."""
    half = (estimate["high"] - estimate["low"]) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 6
    return f"{estimate['value']:.{digits}f} ± {half:.{digits}f}"


def ratio_text(model: Document, found: Document | None, group: str, sizes: Mapping[str, int]) -> str:
    """Return the paired ratio of the mean divergences with its interval, to which model, and the ratio of bytes."""
    if found is None or "ratios" not in found or found["ratios"][group]["kl_mean"]["value"] is None:
        return ""
    ratio = found["ratios"][group]["kl_mean"]
    other = model["baseline"]
    share = model["num_bytes"] / sizes[other]
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) x {other} at {share:.2f} x its bytes"


def bytes_at_equal_divergence(document: Document, comparison: str, group: str) -> dict[str, float]:
    """Return, by label, a model's bytes over those that llama.cpp's plain files need for the same divergence.

    Between two of their files ln KL is taken as linear in bytes; of files that another beats in both, none is used.
    Models beyond the range of the files have no figure.
    """
    peers, ours = list[tuple[float, float]](), list[tuple[str, float, float]]()
    for model in document["models"]:
        for found in model["comparisons"]:
            if found["comparison"] != comparison or found.get("kv_dtype", "float16") != "float16":
                continue
            point = float(model["num_bytes"]), math.log(max(found["groups"][group]["kl_mean"]["value"], 1e-300))
            if model["kind"] == GGUF and "imatrix" not in model["name"]:
                peers.append(point)
            elif model["kind"] not in (GGUF, PUBLISHED):
                ours.append((label_of(model, found), *point))
    best = [
        point for point in sorted(peers) if not any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in peers)
    ]
    found_ratios = {}
    for label, size, divergence in ours:
        for (low, high_kl), (high, low_kl) in pairwise(best):
            if low_kl <= divergence <= high_kl:
                needed = low + (high - low) * (high_kl - divergence) / (high_kl - low_kl)
                found_ratios[label] = size / needed
    return found_ratios
