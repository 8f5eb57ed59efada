"""A document of figures as a picture: tokens a second against depth, and the engine under the machine's roofline.

This file owns the picture. It needs matplotlib (extra `bench`). Invariant: every point is a median of rounds, with a
bar from the smallest to the largest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cg_local.bench.engines import OWN_NAME
from cg_local.bench.summary import Document, Figure, bandwidth, int8_peak, over_rounds, rate
from cg_local.errors import BenchmarkError

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse what could not be drawn, before anything is measured.

    Raises:
        BenchmarkError: matplotlib is missing, or the file's name has another ending.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BenchmarkError(f"{path}: a plot ends in {', '.join(SUFFIXES)}; name it so")
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise BenchmarkError(
            "a plot needs matplotlib, which is not installed; run `pip install 'cg-local[bench]'`"
        ) from cause


def write_plot(document: Document, path: Path) -> None:
    """Draw a document.

    Args:
        document: of a run.
        path: file to write, .png, .svg or .pdf.

    Raises:
        BenchmarkError: as `check_plot`, or the file cannot be written.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (depths, roofline) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _draw_depths(depths, document)
    _draw_roofline(roofline, document)
    model, machine = document["model"], document["machine"]
    title = f"{model['name']}, {machine['processor']}, {document['num_threads']} threads"
    figure.suptitle(title, fontsize="medium")
    try:
        figure.savefig(path)
    except OSError as cause:
        raise BenchmarkError(f"{path}: cannot be written ({cause.strerror}); choose another place") from cause
    finally:
        pyplot.close(figure)


def _draw_depths(axes: Any, document: Document) -> None:
    """Decode of every engine against the context before it, and what the bandwidth allows."""
    for name in document["engines"]:
        points = [(depth, rate(name, "decode", depth)) for depth in document["plan"]["depths"]]
        _draw(axes, document, points, name)
    limits = []
    for depth in document["plan"]["depths"]:
        found, num_bytes = over_rounds(document, bandwidth), document["bytes_per_token"].get(str(depth))
        if found is not None and num_bytes:
            limits.append((depth, found["median"] / num_bytes))
    if limits:
        axes.plot(*zip(*limits, strict=True), linestyle="--", color="grey", label=f"bandwidth limit of {OWN_NAME}")
    axes.set(xlabel="tokens of context", ylabel="tokens/s", title="decode", ylim=(0, None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _draw_roofline(axes: Any, document: Document) -> None:
    """Operations a second over operations for each byte read: batches go up the slope, prompts to the peak."""
    width, peak = over_rounds(document, bandwidth), over_rounds(document, int8_peak)
    num_bytes = document["bytes_per_token"].get("0")
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte read", ylabel="10^9 operations/s")
    axes.set(title="roofline")
    if width is None or peak is None or not num_bytes:
        return
    per_token = 2 * document["model"]["num_parameters"]
    points = [("batch", size, size * per_token / num_bytes) for size in document["plan"]["batches"]]
    # A prompt is computed in chunks, each of which reads the weights once.
    chunk = document["prefill_chunk"]
    points += [("prefill", n, min(n, chunk) * per_token / num_bytes) for n in document["plan"]["prefill"]]
    ends = [0.5 * per_token / num_bytes, 2 * chunk * per_token / num_bytes]
    ridge = min(max(peak["median"] / width["median"], ends[0]), ends[1])
    limit = [(x, min(peak["median"], x * width["median"]) / 1e9) for x in (ends[0], ridge, ends[1])]
    axes.plot(*zip(*limit, strict=True), linestyle="--", color="grey", label="limit")
    for kind, label, marker in (("batch", "tokens of sequences together", "o"), ("prefill", "prompts", "s")):
        drawn = [(x, _operations(document, kind, key)) for name, key, x in points if name == kind]
        _draw(axes, document, drawn, label, marker=marker)
    axes.legend(fontsize="small")


def _operations(document: Document, kind: str, key: int) -> Figure:
    """10**9 operations a second of a prompt or a batch."""
    per_token = 2 * document["model"]["num_parameters"]
    if kind == "prefill":
        per_token = document["prefill_operations"][str(key)] / key
    tokens = rate(OWN_NAME, kind, key)

    def of(figures: Any) -> float | None:
        found = tokens(figures)
        return None if found is None else found * per_token / 1e9

    return of


def _draw(axes: Any, document: Document, points: list[tuple[float, Figure]], label: str, marker: str = "o") -> None:
    found = [(x, over_rounds(document, figure)) for x, figure in points]
    known = [(x, values) for x, values in found if values is not None]
    if known:
        medians = [values["median"] for _, values in known]
        below = [values["median"] - values["min"] for _, values in known]
        above = [values["max"] - values["median"] for _, values in known]
        x_values = [x for x, _ in known]
        axes.errorbar(x_values, medians, yerr=[below, above], marker=marker, capsize=3, label=label)
