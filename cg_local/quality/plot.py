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
    with matplotlib.rc_context({"svg.hashsalt": HASH_SALT}):
        figure, axes = pyplot.subplots(
            1, len(kinds), figsize=(5.5 * len(kinds), 4.5), layout="constrained", squeeze=False
        )
        for place, kind in zip(axes[0], kinds, strict=True):
            _draw(place, document, kind, group)
        count = document["num_scored"][group]
        figure.suptitle(f"{document['reference']['name']}, {count:,} tokens of {group}", fontsize="medium")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as cause:
            raise QualityError(f"{path}: cannot be written ({cause.strerror}); choose another place") from cause
        finally:
            pyplot.close(figure)


def _draw(axes: Any, document: Document, kind: str, group: str) -> None:
    axes.set(xlabel="MiB of tensors", ylabel="mean KL in nats a token", yscale="log", title=kind)
    for is_peer, (marker, color, name) in MARKS.items():
        points = list(_points(document, kind, group, is_peer))
        if points:
            sizes, values, below, above, labels = zip(*points, strict=True)
            axes.errorbar(sizes, values, yerr=[below, above], fmt=marker, color=color, capsize=2, label=name)
            for size, value, label in zip(sizes, values, labels, strict=True):
                axes.annotate(label, (size, value), xytext=(4, 3), textcoords="offset points", fontsize="x-small")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


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
