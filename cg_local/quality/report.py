"""A comparison from beginning to end: states, divergences, intervals, and the document that holds them.

Owns the order of the work and the members of the document. Figures are `quant.intervals`', tables `table`'s. Invariant:
a model is compared twice where an engine runs it, and both figures say which they are: `format-only`, its weights
dequantized to float32 in the reference's arithmetic, and `end to end`, as the engine computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.quality.engines import EngineSettings, engine_of
from cg_local.quality.models import GGUF, PUBLISHED, ComparedModel, Reference
from cg_local.quality.places import GROUPS, Places
from cg_local.quality.stored_states import read_states, states_key, write_states
from cg_local.quality.tensor_errors import tensor_errors, worst_tensors
from cg_local.quant.divergence import HeadLogits, RowLogits, TokenFigures, compare
from cg_local.quant.hidden_states import RowSource, final_states
from cg_local.quant.intervals import Sample, Statistic, difference, estimate, ratios, statistics

Floats = NDArray[np.float32]
Document = dict[str, Any]
Say = Callable[[str], None]

FORMAT_ONLY, END_TO_END = "format-only", "end to end"


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Attributes:
        kv_dtypes: how engines keep K and V, keys of `engines.LLAMA_KV_TYPES`; the others are compared with the first.
        activations: of this engine, as in EngineSettings.
        num_threads: of the engines; None: as they choose.
        peer_python: an interpreter that has llama-cpp-python; None: GGUF files are compared format-only.
        baselines: by a model's index, the index of the model that its figures are divided by.
        states: file of the reference's states; None: in the cache folder.
    """

    kv_dtypes: tuple[str, ...] = ("float16",)
    activations: tuple[str, ...] = ("int8",)
    num_threads: int | None = None
    peer_python: str | None = None
    baselines: Mapping[int, int] = field(default_factory=dict)
    states: Path | None = None


@dataclass
class _Comparison:
    """One way of computing one model, and its figures by group."""

    label: dict[str, str]
    groups: dict[str, dict[str, Statistic]] = field(default_factory=dict)


def measure(
    reference: Reference, places: Places, models: Sequence[ComparedModel], options: Options, *, say: Say
) -> Document:
    """Compare models with the reference and return the document.

    Args:
        reference: the published weights.
        places: what is scored.
        models: opened for this reference.
        options: see Options.
        say: told what is being done.

    Raises:
        QualityError, BenchmarkError, CapacityError: a file or an engine fails.
    """
    states = reference_states(reference, places, options.states, say)
    # Short texts, or a user's own, may have nothing of a kind.
    masks = {group: mask for group in GROUPS if (mask := places.mask(group)).any()}
    samples = {group: Sample(places.documents[mask]) for group, mask in masks.items()}
    compared = []
    for model in models:
        found = []
        for label, figures in _figures_of(reference, states, places, model, options, say):
            parts = {group: _chosen(figures, mask) for group, mask in masks.items()}
            groups = {group: statistics(samples[group], part) for group, part in parts.items()}
            found.append(_Comparison(label, groups))
        compared.append(found)
    errors = _tensor_errors(reference, models, places, say)
    return {
        "reference": {"name": reference.name, "num_weights": models[0].num_weights if models else None},
        "corpus": places.corpus.document(),
        "num_scored": {group: sample.num_tokens for group, sample in samples.items()},
        "num_documents": {group: sample.num_documents for group, sample in samples.items()},
        "models": [
            _model_document(model, found, _baseline(index, models, compared, options), errors.get(index))
            for index, (model, found) in enumerate(zip(models, compared, strict=True))
        ],
    }


def _baseline(
    index: int, models: Sequence[ComparedModel], compared: Sequence[Sequence[_Comparison]], options: Options
) -> tuple[str, Sequence[_Comparison]] | None:
    """Return the name and the comparisons of what a model's figures are divided by."""
    other = options.baselines.get(index)
    return None if other is None else (models[other].name, compared[other])


def reference_states(reference: Reference, places: Places, file: Path | None, say: Say) -> Floats:
    """Return the reference's states of the scored places, stored ones where there are; float32 [num_scored, width].

    Args:
        reference: the published weights.
        places: what is scored.
        file: where they are stored; None: a file in the cache folder, which is made anew when it is damaged.
        say: told what is being done.

    Raises:
        QualityError: `file` holds other states or cannot be used.
    """
    from cg_local.errors import QualityError
    from cg_local.model_store import cache_folder

    say(f"reading {reference.name}")
    key = states_key(reference.digest(), places.corpus.digest)
    path = file or cache_folder() / "quality" / f"{key[:32]}.npz"
    try:
        stored = read_states(path, key)
    except QualityError:
        if file is not None:
            raise
        stored = None
    if stored is not None and len(stored) == len(places.true_ids):
        return stored
    states = _scored_states(reference.checkpoint, places, reference.name, say)
    try:
        write_states(path, key, states)
    except QualityError:
        if file is not None:
            raise  # the cache is a convenience: a comparison does not fail for it
    return states


def _scored_states(source: RowSource, places: Places, name: str, say: Say) -> Floats:
    def on_layer(done: int, total: int) -> None:
        say(f"{name} in float32: layer {done} of {total}")

    return places.scored(final_states(source, [window.token_ids for window in places.windows], on_layer=on_layer))


def _figures_of(
    reference: Reference, states: Floats, places: Places, model: ComparedModel, options: Options, say: Say
) -> Iterator[tuple[dict[str, str], TokenFigures]]:
    """Yield each way of computing a model with the figures of its tokens."""
    vocab_size = reference.checkpoint.config.vocab_size
    own = _scored_states(model.source, places, model.name, say)
    say(f"{model.name}: comparing {len(own):,} predictions")
    pair = HeadLogits(states, reference.checkpoint, vocab_size), HeadLogits(own, model.source, vocab_size)
    yield {"comparison": FORMAT_ONLY}, compare(*pair, places.true_ids)
    if model.kind == PUBLISHED or (model.kind == GGUF and options.peer_python is None):
        return
    activations = options.activations if model.kind != GGUF else options.activations[:1]
    for kv_dtype in options.kv_dtypes:
        for rounding in activations:
            settings = EngineSettings(kv_dtype, rounding, options.num_threads)
            label, figures = _engine_figures(reference, states, places, model, settings, options.peer_python, say)
            yield label, figures


def _engine_figures(
    reference: Reference,
    states: Floats,
    places: Places,
    model: ComparedModel,
    settings: EngineSettings,
    peer_python: str | None,
    say: Say,
) -> tuple[dict[str, str], TokenFigures]:
    vocab_size = reference.checkpoint.config.vocab_size
    longest = max(len(window.token_ids) for window in places.windows)
    parts = []
    with engine_of(model, settings, longest, peer_python) as engine:
        label = {"comparison": END_TO_END, "engine": engine.name, "kv_dtype": settings.kv_dtype}
        if model.kind != GGUF:
            label["activations"] = settings.activations
        for number, (window, rows) in enumerate(zip(places.windows, places.slices(), strict=True), 1):
            say(f"{model.name} by {engine.name}, K and V {settings.kv_dtype}: window {number} of {len(places.windows)}")
            theirs = RowLogits(engine.scored_logits(window), vocab_size)
            ours = HeadLogits(states[rows], reference.checkpoint, vocab_size)
            parts.append(compare(ours, theirs, places.true_ids[rows]))
    return label, TokenFigures.join(parts)


def _chosen(figures: TokenFigures, mask: NDArray[np.bool_]) -> TokenFigures:
    return TokenFigures(
        kl=figures.kl[mask],
        is_same_top=figures.is_same_top[mask],
        reference_loss=figures.reference_loss[mask],
        model_loss=figures.model_loss[mask],
    )


def _tensor_errors(
    reference: Reference, models: Sequence[ComparedModel], places: Places, say: Say
) -> dict[int, dict[str, float]]:
    """Return the errors of each matrix of every model that rounds, by the model's index."""
    chosen = [index for index, model in enumerate(models) if model.kind != PUBLISHED]
    if not chosen:
        return {}
    say("the output error of each matrix")
    found = tensor_errors(reference.checkpoint, [models[index].source for index in chosen], places.windows)
    return dict(zip(chosen, found, strict=True))


def _model_document(
    model: ComparedModel,
    compared: Sequence[_Comparison],
    baseline: tuple[str, Sequence[_Comparison]] | None,
    errors: Mapping[str, float] | None,
) -> Document:
    return {
        "name": model.name,
        "kind": model.kind,
        "formats": model.formats,
        "num_bytes": model.num_bytes,
        "bits_per_weight": model.bits_per_weight,
        "baseline": None if baseline is None else baseline[0],
        "comparisons": [_comparison_document(each, compared, baseline and baseline[1]) for each in compared],
        "worst_tensors": None if errors is None else [list(each) for each in worst_tensors(errors)],
        "tensor_errors": None if errors is None else dict(errors),
    }


def _comparison_document(
    comparison: _Comparison, siblings: Sequence[_Comparison], baseline: Sequence[_Comparison] | None
) -> Document:
    document: Document = {
        **comparison.label,
        "groups": {
            group: {name: estimate(statistic).document() for name, statistic in found.items()}
            for group, found in comparison.groups.items()
        },
    }
    if baseline is not None:
        document["ratios"] = _against(comparison, _counterpart(comparison, baseline))
    first = _counterpart(comparison, siblings)
    if first is not comparison:
        # What another way of keeping K and V, or of rounding activations, adds to the same weights in the same engine.
        document["added_kl"] = {
            group: difference(found["kl_mean"], first.groups[group]["kl_mean"]).document()
            for group, found in comparison.groups.items()
        }
    return document


def _against(comparison: _Comparison, other: _Comparison) -> Document:
    return {
        group: {name: value.document() for name, value in ratios(found, other.groups[group]).items()}
        for group, found in comparison.groups.items()
    }


def _counterpart(comparison: _Comparison, others: Sequence[_Comparison]) -> _Comparison:
    """The first of the same kind of comparison, or the first of all: a file that no engine ran has no other."""
    kind = comparison.label["comparison"]
    return next((other for other in others if other.label["comparison"] == kind), others[0])
