"""A document of a comparison as a picture: divergence against bytes, this project's models and llama.cpp's files.

Owns the picture. It needs matplotlib (extra `bench`). Invariant: every point has a bar over its 95 % interval, and both
comparisons are drawn where there are both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cg_local.bench.plot import check_plot
from cg_local.errors import QualityError
from cg_local.quality.models import GGUF, PUBLISHED
from cg_local.quality.report import END_TO_END, FORMAT_ONLY, Document
from cg_local.quality.table import label_of

MARKS = {False: ("o", "C0", "cg-local"), True: ("s", "C1", "llama.cpp")}
# matplotlib's own is drawn at random; a picture that stands in a repository should change with its figures alone.
HASH_SALT = "cg-local"
# Of the labels, in typographic points: size, mean width of a character, distance of two lines, distance of the point.
LABEL_SIZE, LABEL_ADVANCE, LABEL_HEIGHT, LABEL_GAP = 6.5, 3.9, 8.0, 8.0
Point = tuple[float, float, str]


def write_plot(document: Document, path: Path) -> None:
    """Draw a document.

    Args:
        document: from `report.measure`.
        path: file to write, .png, .svg or .pdf.

    Raises:
        BenchmarkError: matplotlib is missing, or the file's name has another ending.
        QualityError: the file cannot be written.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    present = {found["comparison"] for model in document["models"] for found in model["comparisons"]}
    kinds = [kind for kind in (FORMAT_ONLY, END_TO_END) if kind in present]
    group = next(iter(document["num_scored"]))
    with matplotlib.rc_context({"svg.hashsalt": HASH_SALT, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(
            1, len(kinds), figsize=(5.5 * len(kinds), 4.5), layout="constrained", squeeze=False
        )
        labels = [_draw(place, document, kind, group) for place, kind in zip(axes[0], kinds, strict=True)]
        count = document["num_scored"][group]
        figure.suptitle(f"{document['reference']['name']}, {count:,} tokens of {group}", fontsize="medium")
        figure.draw_without_rendering()  # from here on the axes stay where they are
        for place, points in zip(axes[0], labels, strict=True):
            _write_labels(place, points)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as cause:
            raise QualityError(f"{path}: cannot be written ({cause.strerror}); choose another place") from cause
        finally:
            pyplot.close(figure)


def _draw(axes: Any, document: Document, kind: str, group: str) -> list[Point]:
    """Draw the points of a comparison; return where labels belong."""
    axes.set(xlabel="MiB of tensors", ylabel="mean KL in nats a token", yscale="log", title=kind)
    axes.margins(x=0.15)
    drawn: list[Point] = []
    for is_peer, (marker, color, name) in MARKS.items():
        points = list(_points(document, kind, group, is_peer))
        if points:
            sizes, values, below, above, _ = zip(*points, strict=True)
            axes.errorbar(
                sizes, values, yerr=[below, above], fmt=marker, color=color, markersize=4, capsize=2, label=name
            )
            drawn += [(size, value, label) for size, value, _, _, label in points]
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="upper right")
    return drawn


def _write_labels(axes: Any, points: list[Point]) -> None:
    """Write each label beside its point, the lower of two that would overlap moved down and joined by a line."""
    scale = 72 / axes.figure.dpi  # points for each pixel
    middle = sum(axes.get_window_extent().intervalx) / 2
    placed: list[tuple[float, float, float]] = []
    for size, value, label in sorted(points, key=_top_first):
        x, y = axes.transData.transform((size, value))
        is_left = x > middle  # of its point, so that it stays inside
        width = (len(label) * LABEL_ADVANCE + LABEL_GAP) / scale
        start, stop = (x - width, x) if is_left else (x, x + width)
        level = y
        for other_start, other_stop, other in placed:
            if start < other_stop and other_start < stop and abs(level - other) < LABEL_HEIGHT / scale:
                level = other - LABEL_HEIGHT / scale
        placed.append((start, stop, level))
        text = axes.annotate(
            label,
            (size, value),
            xytext=(-LABEL_GAP if is_left else LABEL_GAP, (level - y) * scale),
            textcoords="offset points",
            ha="right" if is_left else "left",
            va="center",
            fontsize=LABEL_SIZE,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"} if level != y else None,
        )
        text.set_in_layout(False)


def _top_first(point: Point) -> tuple[float, float]:
    return -point[1], point[0]


def _points(document: Document, kind: str, group: str, is_peer: bool) -> Any:
    for model in document["models"]:
        if model["kind"] == PUBLISHED or (model["kind"] == GGUF) != is_peer:
            continue
        for found in model["comparisons"]:
            kl = found["groups"][group]["kl_mean"]
            if found["comparison"] == kind and kl["value"] > 0:
                size = model["num_bytes"] / 2**20
                below, above = max(0.0, kl["value"] - kl["low"]), max(0.0, kl["high"] - kl["value"])
                yield size, kl["value"], min(below, 0.999 * kl["value"]), above, label_of(model, found)
