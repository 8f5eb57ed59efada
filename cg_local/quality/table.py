"""A document of a comparison as text for a terminal.

Owns the columns and their wording. It computes nothing. Invariant: every figure is followed by what its interval adds,
and each table says which comparison and which texts it is of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cg_local.quality.places import GROUPS
from cg_local.quality.report import END_TO_END, FORMAT_ONLY, Document

Figures = Mapping[str, Mapping[str, float]]
RATIO_NAMES = {
    "kl_mean": "KL mean",
    "kl_999": "KL 99.9 %",
    "top1_mismatch": "top-1 mismatch",
    "probability_rms": "RMS dp",
    "abs_ln_perplexity_ratio": "|ln PPL ratio|",
}


def report(document: Document) -> str:
    """Return the tables of a document: each comparison, by kind of text, ratios, and the worst matrices."""
    corpus, scored = document["corpus"], document["num_scored"]
    main = next(iter(scored))
    lines = [
        f"reference {document['reference']['name']} in float32; {corpus['num_tokens']:,} tokens of "
        f"{len(corpus['files']):,} files, predictions scored: "
        + ", ".join(f"{group} {count:,}" for group, count in scored.items()),
        "KL(reference || model) in nats a token; +- is half of the 95 % interval over files",
    ]
    for comparison in (FORMAT_ONLY, END_TO_END):
        rows = list(_rows(document, comparison))
        if rows:
            lines += ["", f"{comparison}, {main}", *_main_table(rows, main)]
            lines += ["", f"{comparison}, mean KL by kind of text", *_kinds_table(rows, scored)]
            lines += _ratio_table(rows, main)
    lines += _added_kl(document, main)
    lines += _worst(document)
    return "\n".join(lines) + "\n"


def _rows(document: Document, comparison: str) -> Iterator[tuple[str, Document, Document]]:
    """Yield the name, the model and the comparison of each row."""
    for model in document["models"]:
        for found in model["comparisons"]:
            if found["comparison"] == comparison:
                yield label_of(model, found), model, found


def label_of(model: Document, comparison: Document) -> str:
    """Return what a row is called: the model, and how its engine differs from the plain one."""
    marks = []
    if comparison.get("kv_dtype", "float16") != "float16":
        marks.append(f"{comparison['kv_dtype']} KV")
    if comparison.get("activations", "int8") != "int8":
        marks.append(f"{comparison['activations']} activations")
    return ", ".join([str(model["name"]), *marks])


def _main_table(rows: Sequence[tuple[str, Document, Document]], group: str) -> list[str]:
    heads = ["model", "bytes", "bits", "KL mean", "+-", "median", "99 %", "99.9 %", "max"]
    heads += ["same top", "RMS dp", "PPL", "ln PPL ratio", "+-"]
    table = [heads]
    for label, model, found in rows:
        figures: Figures = found["groups"][group]
        row = [label, f"{model['num_bytes']:,}", f"{model['bits_per_weight']:.3f}"]
        row += [_small(figures["kl_mean"]["value"]), _half(figures["kl_mean"])]
        row += [_small(figures[name]["value"]) for name in ("kl_median", "kl_99", "kl_999", "kl_max")]
        row += [f"{figures['top1_agreement']['value']:.2%}", f"{figures['probability_rms']['value']:.3%}"]
        ratio = figures["ln_perplexity_ratio"]
        row += [f"{figures['perplexity']['value']:.4f}", f"{ratio['value']:+.5f}", _half(ratio)]
        table.append(row)
    return _aligned(table)


def _kinds_table(rows: Sequence[tuple[str, Document, Document]], scored: Mapping[str, int]) -> list[str]:
    groups = [group for group in GROUPS if group in scored]
    table = [["model", *(mark for group in groups for mark in (group, "+-"))]]
    for label, _, found in rows:
        row = [label]
        for group in groups:
            kl = found["groups"][group]["kl_mean"]
            row += [_small(kl["value"]), _half(kl)]
        table.append(row)
    return _aligned(table)


def _ratio_table(rows: Sequence[tuple[str, Document, Document]], group: str) -> list[str]:
    table = [["model", "over", *RATIO_NAMES.values()]]
    for label, model, found in rows:
        if "ratios" in found:
            values = found["ratios"][group]
            table.append([label, model["baseline"], *(_ratio(values[name]) for name in RATIO_NAMES)])
    if len(table) == 1:
        return []
    return ["", f"ratios, {group}, paired: value (95 % interval)", *_aligned(table)]


def _added_kl(document: Document, group: str) -> list[str]:
    table = [["model", "added KL", "from", "to"]]
    for label, _, found in _rows(document, END_TO_END):
        if "added_kl" in found:
            added = found["added_kl"][group]
            table.append([label, *(_small(added[name]) for name in ("value", "low", "high"))])
    return ["", f"beyond the engine's first way, {group}, paired", *_aligned(table)] if len(table) > 1 else []


def _worst(document: Document) -> list[str]:
    lines = []
    for model in document["models"]:
        if model["worst_tensors"]:
            found = ", ".join(f"{_short(name)} {error:.2e}" for name, error in model["worst_tensors"])
            lines.append(f"  {model['name']}: {found}")
    return ["", "largest relative output errors of matrices", *lines] if lines else []


def _short(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight")


def _half(estimate: Mapping[str, float | None]) -> str:
    """Half of an interval; nothing where a single file, or a figure that is not finite, allows none."""
    low, high = estimate["low"], estimate["high"]
    return "-" if low is None or high is None or low == high else _small((high - low) / 2)


def _small(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def _ratio(estimate: Mapping[str, float | None]) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column at the left and the others at the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
