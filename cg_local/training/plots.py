"""Draws a run's losses from its log.

Owns the picture; the figures are the log's. matplotlib (extra `train`) is imported when it is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cg_local.errors import TrainingError

SMOOTHED_SHARE = 0.02
"""A point of the training curve is the mean over so much of the run: single batches differ by half a nat."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's `log.jsonl`.

    Where a run went on from an older checkpoint than its last step, the entries of the steps done again replace those
    of the first time. A line cut off by a killed process is left out.

    Raises:
        TrainingError: there is no log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"{path}: no log of a run ({error.strerror}).") from error
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        while entries and "loss" in entry and entries[-1]["step"] >= entry["step"]:
            entries.pop()
        entries.append(entry)
    return entries


def smoothed(values: list[float], share: float = SMOOTHED_SHARE) -> list[float]:
    """Means over a window of `share` of all values, ending at each of them."""
    window = max(1, int(len(values) * share))
    sums, means = 0.0, []
    for index, value in enumerate(values):
        sums += value - (values[index - window] if index >= window else 0.0)
        means.append(sums / min(index + 1, window))
    return means


def plot_losses(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation losses over tokens.

    Args:
        entries: as from `read_log`.
        path: picture to write; its ending decides the format.

    Raises:
        TrainingError: matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        raise TrainingError(f"{path}: nothing to draw, the run has no step yet.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrainingError(f"{path}: the plot needs matplotlib: pip install 'cg-local[train]'.") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    tokens = [entry["tokens"] / 1e6 for entry in steps]
    for name, label in (("loss", "training, all tokens"), ("middle_loss", "training, middles")):
        axes.plot(tokens, smoothed([entry[name] for entry in steps]), label=label, linewidth=1.2)
    checks = [entry for entry in entries if "validation_loss" in entry]
    for name, label in (("validation_loss", "held out, all tokens"), ("validation_middle_loss", "held out, middles")):
        points = [(entry["tokens"] / 1e6, entry[name]) for entry in checks if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), "o--", markersize=3, linewidth=0.8, label=label)
    axes.set(xlabel="million tokens", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: the plot cannot be written: {error}.") from error
