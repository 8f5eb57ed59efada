"""Making an importance pack: the statistics of every matrix's inputs while a model reads texts.

This file owns what is observed, how much the output minds an error of each matrix, and what that takes. The texts are
`corpora`'s, the pass over the layers is `hidden_states`', the statistics are `importance`'s, interrupted work is
`calibration_work`'s. Invariant: everything is computed with the published weights in float32, but for the one matrix
whose error is looked at; of that one, and of the head, a few rows are held at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CapacityError, QuantizeError
from cg_local.memory import available_bytes, readable_size
from cg_local.model_folder import EMBEDDING, HEAD, matrix_shapes
from cg_local.quant.calibration_work import CalibrationWork
from cg_local.quant.corpora import Corpus
from cg_local.quant.divergence import HeadLogits, compare
from cg_local.quant.encoder import guide_by, sample_rows
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.fixed_order import WORK_BYTES, single_threaded_blas, usable_cores
from cg_local.quant.hidden_states import advance, embedded, final_states, normed, window_bytes
from cg_local.quant.importance import RANK, ImportancePack, InputStatistics, input_name
from cg_local.quant.rounded_rows import Rounding, relative_errors
from cg_local.quant.schemes import divisible_format
from cg_local.quant.work_plan import code_identity

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]

PROBE = "c4g32"
"""The format whose error probes a matrix: large enough to stand out of the arithmetic's own noise."""

PIECE_BYTES = 8 << 20  # float32 bytes of the rows of a probed matrix that are rounded at a time
OWN_BYTES = 512 << 20  # of the interpreter with NumPy and Numba, of slabs of the head and of one text's own arrays


@single_threaded_blas()
def calibrate(
    checkpoint: Checkpoint,
    destination: Path,
    corpus: Corpus,
    probes: Corpus | None = None,
    *,
    restart: bool = False,
    on_step: Callable[[int, int, str], None] = lambda done, total, what: None,
    on_notice: Callable[[str], None] = lambda text: None,
    num_threads: int | None = None,
) -> ImportancePack:
    """Make a pack and write it to a file; an interrupted call is continued by the same one.

    Args:
        checkpoint: the published weights.
        destination: file to write; what is there is replaced in the end.
        corpus: texts, from `corpora.calibration_corpus`.
        probes: texts to measure sensitivities on; None: the pack has none.
        restart: discard what an interrupted call has done.
        on_step: called with steps done, steps in all, and the last one's name, first for layers, then for matrices.
        on_notice: called with one line about interrupted work.
        num_threads: None takes one for each core that this process may use. The result does not depend on it.

    Raises:
        CapacityError: it does not fit in the memory that is free.
        QuantizeError: the disk is too full, another process makes this pack, or an input is not finite.
        SettingsError: a file cannot be written.
    """
    num_threads = num_threads or usable_cores()
    check_memory(checkpoint, corpus, probes, num_threads)
    plan = {
        "quantizer": code_identity(),
        "sources": fingerprint(checkpoint),
        "options": {"corpus": corpus.document()},
    }
    texts = None if probes is None else probes.digest
    with CalibrationWork(destination, plan, probes=texts, restart=restart, on_notice=on_notice) as work:
        _check_disk(checkpoint.config, destination, corpus, work)
        pack = importance_of(
            checkpoint,
            corpus,
            work=work,
            on_layer=lambda done, total: on_step(done, total, f"layer {done} of {total}"),
            num_threads=num_threads,
        )
        if probes is not None:
            found = sensitivities_of(
                checkpoint,
                probes,
                pack,
                work=work,
                on_matrix=lambda done, total: on_step(done, total, f"matrix {done} of {total}"),
                num_threads=num_threads,
            )
            pack = replace(pack, sensitivities=found)
        pack.save(destination)
        work.finish()
    return pack


def needed_bytes(config: ModelConfig, corpus: Corpus, probes: Corpus | None = None, num_threads: int = 1) -> int:
    """Return the memory that making a pack takes at most.

    A layer's half is held in float32, with the stream of all tokens. The statistics also need the inputs of its
    matrices and, shortened, those of the widest; probes the stream behind the layers before, that behind the last one
    of the published weights, and of the probed ones, each once more joined. Each thread but one adds its text's arrays,
    which are gone before the inputs are shortened.
    """
    weights = 4 * config.hidden_size * max(3 * config.intermediate_size, 4 * config.num_heads * config.head_dim)
    windows = (*corpus.windows, *(() if probes is None else probes.windows))
    longest = max(len(window.token_ids) for window in windows)
    texts = min(WORK_BYTES, (num_threads - 1) * window_bytes(config, longest))
    inputs = corpus.num_tokens * 4 * config.intermediate_size
    statistics = corpus.num_tokens * 4 * 2 * config.hidden_size + inputs + max(inputs, texts)
    measured = 0 if probes is None else probes.num_tokens * 4 * 5 * config.hidden_size + texts
    return OWN_BYTES + weights + max(statistics, measured)


def check_memory(checkpoint: Checkpoint, corpus: Corpus, probes: Corpus | None, num_threads: int) -> None:
    """Refuse what cannot fit.

    Raises:
        CapacityError: more is needed than is free.
    """
    needed, available = needed_bytes(checkpoint.config, corpus, probes, num_threads), available_bytes()
    if available is not None and needed > available:
        raise CapacityError(
            f"{checkpoint.path}: calibration on {corpus.num_tokens:,} tokens needs {readable_size(needed)} of memory, "
            f"{readable_size(available)} are free; ask for fewer --tokens, or close other programs"
        )


def _check_disk(config: ModelConfig, destination: Path, corpus: Corpus, work: CalibrationWork) -> None:
    shapes = matrix_shapes(config, has_separate_head=False)
    pack = sum(4 * (1 + RANK) * columns for name, (_, columns) in shapes.items() if input_name(name) == name)
    stream = 0 if work.knows_inputs else 4 * corpus.num_tokens * config.hidden_size
    # Each file's new content lies beside the old one for a moment; what is there need not fit once more.
    needed = 2 * (pack + stream) - work.num_bytes
    free = shutil.disk_usage(destination.absolute().parent).free
    if free < needed:
        raise QuantizeError(
            f"{destination.absolute().parent}: {free:,} bytes free, {needed:,} needed; make room or choose another disk"
        )


@single_threaded_blas()
def importance_of(
    checkpoint: Checkpoint,
    corpus: Corpus,
    *,
    work: CalibrationWork | None = None,
    on_layer: OnStep | None = None,
    num_threads: int = 1,
) -> ImportancePack:
    """Compute the statistics of all inputs over a corpus.

    Args:
        checkpoint: the published weights.
        corpus: from `corpora.calibration_corpus`.
        work: entered; gone on with and kept up to date.
        on_layer: called with the layers done and in all.
        num_threads: among which the texts are shared out.
    """
    statistics: dict[str, InputStatistics] = {} if work is None else dict(work.statistics)
    document = {"corpus": corpus.document(), "sources": [path.name for path in checkpoint.source_files]}

    def observe(name: str, inputs: list[Floats]) -> None:
        if input_name(name) == name:
            statistics[name] = InputStatistics.of(inputs, num_threads)

    if EMBEDDING not in statistics:
        states, first = _begun(checkpoint, corpus, work)
        for layer in range(first, checkpoint.config.num_layers):
            advance(checkpoint, states, [layer], observe=observe, num_threads=num_threads)
            if work is not None:
                work.keep_layer(layer, statistics, states)
            if on_layer is not None:
                on_layer(layer + 1, checkpoint.config.num_layers)
        statistics[EMBEDDING] = InputStatistics.of(normed(checkpoint, states), num_threads)
    pack = ImportancePack(statistics, {}, fingerprint(checkpoint), document)
    if work is not None and not work.knows_inputs:
        work.keep(pack)
    return pack


def _begun(checkpoint: Checkpoint, corpus: Corpus, work: CalibrationWork | None) -> tuple[list[Floats], int]:
    """Return the residual stream to go on with and the layer that comes next."""
    sequences = [window.token_ids for window in corpus.windows]
    if work is None or work.states is None:
        return embedded(checkpoint, sequences), 0
    states = np.split(work.states, np.cumsum([len(ids) for ids in sequences])[:-1])
    work.states = None  # so that one copy is held
    return states, work.num_layers


@single_threaded_blas()
def sensitivities_of(
    checkpoint: Checkpoint,
    corpus: Corpus,
    pack: ImportancePack,
    *,
    work: CalibrationWork | None = None,
    on_matrix: OnStep | None = None,
    num_threads: int = 1,
) -> dict[str, float]:
    """Measure how far the output moves for the error of each matrix.

    Each matrix in turn is rounded to PROBE while the others stay as published.

    Args:
        checkpoint: the published weights.
        corpus: texts to measure on; all layers from a matrix's own on run over them once for each matrix.
        pack: statistics of the inputs.
        work: entered; gone on with and kept up to date.
        on_matrix: called with the matrices done and in all.
        num_threads: among which the texts are shared out.

    Returns:
        name -> mean KL divergence in nats over the relative output error, `rounded_rows.relative_error`; 0 for a matrix
        that PROBE holds without an error.
    """
    found = {} if work is None else dict(work.sensitivities)
    shapes = matrix_shapes(checkpoint.config, has_separate_head=checkpoint.has_separate_head)
    missing = [name for name in shapes if name not in found]
    sequences = [window.token_ids for window in corpus.windows]
    output = _Output(checkpoint, sequences, num_threads) if missing else None
    for name in missing:
        assert output is not None
        probed = _Probed.of(checkpoint, name, pack)
        error = relative_errors(probed.pieces(), pack.of(name))
        # Without an error there is nothing to look at; sums of a divergence near 0 may end a little below it.
        found[name] = max(0.0, output.divergence(probed) / error) if error else 0.0
        if work is not None:
            work.keep(replace(pack, sensitivities=found))
        if on_matrix is not None:
            on_matrix(len(found), len(shapes))
    return {name: found[name] for name in shapes}


class _Output:
    """What the published weights answer, and how far from it an answer with one matrix rounded is.

    The residual stream before a layer is computed once for all its matrices: ask for them in the order of the layers.
    """

    def __init__(self, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], num_threads: int) -> None:
        self._checkpoint, self._sequences, self._num_threads = checkpoint, sequences, num_threads
        self._true_ids = np.concatenate([np.array(ids[1:], np.int64) for ids in sequences])
        self._reference = self._logits(final_states(checkpoint, sequences, num_threads=num_threads), checkpoint)
        self._stream, self._layer = embedded(checkpoint, sequences), 0

    def divergence(self, probed: _Probed) -> float:
        """Return the mean KL divergence of the next token's distribution."""
        probed_logits = self._logits(self._states(probed), probed)
        return float(compare(self._reference, probed_logits, self._true_ids, self._num_threads).kl.mean())

    def _states(self, probed: _Probed) -> list[Floats]:
        if probed.name == EMBEDDING:
            return final_states(probed, self._sequences, num_threads=self._num_threads)
        num_layers = self._checkpoint.config.num_layers
        layer = num_layers if probed.name == HEAD else int(probed.name.split(".")[2])
        advance(self._checkpoint, self._stream, range(self._layer, layer), num_threads=self._num_threads)
        self._layer = layer
        states = list(self._stream)
        advance(probed, states, range(layer, num_layers), num_threads=self._num_threads)
        return normed(probed, states)

    def _logits(self, states: Sequence[Floats], source: Checkpoint | _Probed) -> HeadLogits:
        rows = np.concatenate([state[:-1] for state in states])
        return HeadLogits(rows, source, self._checkpoint.config.vocab_size)


@dataclass(frozen=True)
class _Probed:
    """A checkpoint of which one matrix is rounded, rows at a time whenever they are asked for."""

    checkpoint: Checkpoint
    name: str
    rounding: Rounding

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, pack: ImportancePack) -> _Probed:
        shape = checkpoint.shape(name)
        sample = sample_rows(checkpoint, name, shape)
        rounding = Rounding.learned(divisible_format(PROBE, shape[1]), sample, guide_by(pack, name, checkpoint))
        return cls(checkpoint, name, rounding)

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self.checkpoint.tensor_names

    def tensor(self, name: str) -> Floats:
        return self.rows(name, 0, self.checkpoint.shape(name)[0]) if name == self.name else self.checkpoint.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        if name != self.name:
            return self.checkpoint.rows(name, start, stop)
        values = np.empty((stop - start, self.checkpoint.shape(name)[1]), np.float32)
        end = 0
        for _, y in self.pieces(start, stop):
            values[end : end + len(y)] = y
            end += len(y)
        return values

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Floats, Floats]]:
        """Yield published and rounded rows, a piece at a time; by default of the whole matrix."""
        num_rows, columns = self.checkpoint.shape(self.name)
        stop, step = num_rows if stop is None else stop, max(1, PIECE_BYTES // (4 * columns))
        for first in range(start, stop, step):
            x = self.checkpoint.rows(self.name, first, min(first + step, stop))
            yield x, self.rounding.of(x)
