"""The method `gptq`: every matrix is rounded by the products of the inputs that the layers quantized before it give it.

This file owns the order of the work, the residual stream between the layers and what of it is kept for a later run. The
rounding is `feedback`'s, the arithmetic of the layers is `reference`'s. Invariant: a matrix's statistics are computed
with all matrices before it as they stand in the file.

The embedding comes last, when the head's inputs are known; until then the layers see it as published. Its errors are
weighted but not fed back: as a table of inputs it has no sum in which one column could make up for another.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cg_local.checkpoint import Checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, HEAD
from cg_local.packing import dequantize
from cg_local.quant.corpora import Corpus
from cg_local.quant.encode import Guide
from cg_local.quant.encoder import SearchEncoder, Workplace
from cg_local.quant.feedback import DenseFeedback
from cg_local.quant.fixed_order import in_order, threads_within
from cg_local.quant.hidden_states import FINAL_NORM, embedded, window_bytes
from cg_local.quant.importance import capped_rows, input_name
from cg_local.quant.schemes import GAIN_FORMAT, TensorPlan
from cg_local.reference import attention_branch, feed_forward_branch, linear, rms_norm, rotary_table

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

BLOCK_COLUMNS = 2048
"""Wider inputs (those of the down projection) are treated in blocks of so many columns: the statistics of 2B's 16,384
inputs would take 2 GiB and their inverse half an hour a layer."""

STREAM_FILES = 3
"""The float32 stream of all tokens is kept before and behind half of a layer, and the next is written beside them."""

_SUFFIX = ".f32"  # of the files of the stream: a SHA-256 of the rest, then float32 [num_tokens, hidden_size]
_DIGEST_BYTES = hashlib.sha256().digest_size


class GptqEncoder(SearchEncoder):
    """Error feedback by the whole product of the inputs, layer by layer.

    Args:
        checkpoint: the source.
        corpus: texts to calibrate on, from `corpora.calibration_corpus`.
    """

    is_sequential = True

    def __init__(self, checkpoint: Checkpoint, corpus: Corpus) -> None:
        super().__init__(checkpoint)
        self._sequences = [window.token_ids for window in corpus.windows]
        self.options = {"method": "gptq", "corpus": corpus.document()}
        self.workspace_bytes = STREAM_FILES * 4 * corpus.num_tokens * checkpoint.config.hidden_size
        self._shared: tuple[str, Guide | None] = "", None

    def order(self, tensors: Sequence[TensorPlan]) -> Sequence[TensorPlan]:
        """Gains, then the layers' matrices, then embedding and head."""
        return sorted(tensors, key=lambda tensor: (tensor.format != GAIN_FORMAT, tensor.name in (EMBEDDING, HEAD)))

    def begin(self, place: Workplace) -> None:
        """Take up the residual stream where an earlier run left it."""
        self._stream = _Stream(self._checkpoint, self._sequences, place)
        self._num_threads = place.num_threads

    def guide_of(self, tensor: TensorPlan) -> Guide | None:
        """Return the statistics of a matrix's inputs, made ready for rounding."""
        if tensor.name == EMBEDDING and self._checkpoint.has_separate_head:
            return None  # a table of inputs, of whose columns nothing is known
        name = input_name(tensor.name)
        if name != self._shared[0]:  # q, k and v have one input, gate and up another
            blocks = _products(capped_rows(self._stream.inputs(name)), self._num_threads)
            importance = np.concatenate([np.diag(block) for block in blocks]).astype(np.float32)
            feedback = None if tensor.name == EMBEDDING else DenseFeedback.of(blocks, self._num_threads)
            self._shared = name, Guide(importance, feedback)
        return self._shared[1]

    def done(self, tensor: TensorPlan) -> None:
        """Let the layers behind a matrix see it as it stands in the file."""
        super().done(tensor)
        self._stream.done(tensor.name)


def _products(rows: Sequence[Floats], num_threads: int) -> tuple[Doubles, ...]:
    """Return the blocks on the diagonal of the sum of x'x: products in float32, their sum in float64, text by text."""
    num_threads = threads_within(num_threads, 2 * 4 * BLOCK_COLUMNS**2)
    columns = rows[0].shape[1]
    starts = range(0, columns, BLOCK_COLUMNS)
    blocks = tuple(np.zeros((min(BLOCK_COLUMNS, columns - start),) * 2) for start in starts)
    pieces = [(block, start, x) for block, start in zip(blocks, starts, strict=True) for x in rows]
    for (block, *_), product in zip(pieces, in_order(_product, pieces, num_threads), strict=True):
        block += product
    return blocks


def _product(piece: tuple[Doubles, int, Floats]) -> Floats:
    _, start, x = piece
    part = x[:, start : start + BLOCK_COLUMNS]
    product: Floats = part.T @ part
    return product


class _FoundInputs(Exception):  # noqa: N818 (nothing is wrong)
    """The inputs that were looked for; ends the computation of a branch."""

    def __init__(self, inputs: Floats) -> None:
        super().__init__()
        self.inputs = inputs


class _Stream:
    """The residual stream of all sequences before a layer's half, and the weights as they stand by now.

    After each half of a layer the stream is kept in a file, so that a later run need not compute it again.
    """

    def __init__(self, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], place: Workplace) -> None:
        self._checkpoint, self._sequences, self._place = checkpoint, sequences, place
        self._finished: set[str] = set()
        self._held: dict[str, Floats] = {}
        self._holding = threading.Lock()  # so that threads that want a tensor at once read it once
        longest = max(map(len, sequences))
        self._num_threads = threads_within(place.num_threads, window_bytes(checkpoint.config, longest))
        self._wanted: str | None = None
        self._last: tuple[str, list[Floats]] = "", []  # name and inputs of the matrix that ends the half in work
        self._half = 0  # halves of layers that the stream has passed: attention, feed-forward, attention, ...

    @property
    def config(self) -> ModelConfig:
        return self._checkpoint.config

    @property
    def tensor_names(self) -> Sequence[str]:
        return self._checkpoint.tensor_names

    def tensor(self, name: str) -> Floats:
        """A tensor as it stands in the file if it is finished, else as published."""
        with self._holding:
            if name not in self._held:
                is_finished = name in self._finished
                whole = dequantize(self._place.packed(name)) if is_finished else self._checkpoint.tensor(name)
                self._held[name] = whole
            return self._held[name]

    def observe(self, name: str, x: Floats) -> None:
        if name == self._wanted:
            raise _FoundInputs(x)

    def done(self, name: str) -> None:
        """Take note of a finished matrix."""
        if name.endswith("_proj.weight"):
            self._finished.add(name)
        self._held.clear()

    def inputs(self, name: str) -> list[Floats]:
        """Return the inputs of a matrix for every sequence; everything before it must be finished."""
        self._held.clear()
        if name in (EMBEDDING, HEAD):
            self._advance(2 * self.config.num_layers)
            gain = self._checkpoint.tensor(FINAL_NORM)
            return [rms_norm(x, gain, self.config.rms_norm_eps) for x in self._states]
        half = 2 * int(name.split(".")[2]) + (".mlp." in name)
        self._advance(half)
        self._wanted = name
        try:
            found = list(in_order(partial(self._found, half), self._states, self._num_threads))
        finally:
            self._wanted = None
            self._held.clear()  # what comes next, the products, takes most memory
        if name == self._last_matrix(half):
            self._last = name, found
        return found

    def _last_matrix(self, half: int) -> str:
        layer, is_feed_forward = divmod(half, 2)
        return f"model.layers.{layer}." + ("mlp.down_proj.weight" if is_feed_forward else "self_attn.o_proj.weight")

    def _found(self, half: int, x: Floats) -> Floats:
        try:
            self._branch(half, x)
        except _FoundInputs as found:
            return found.inputs
        raise AssertionError(self._wanted)

    def _advance(self, half: int) -> None:
        """Bring the stream behind so many halves of layers, from the last one that is kept."""
        if not self._half:
            self._resume(half)
        while self._half < half:
            numbers = range(len(self._states))
            for number, state in enumerate(in_order(self._moved, numbers, self._num_threads)):
                self._states[number] = state
            self._last = "", []
            self._held.clear()
            self._half += 1
            self._keep()

    def _moved(self, number: int) -> Floats:
        """Return one sequence's stream behind the half in work."""
        (name, inputs), x = self._last, self._states[number]
        is_known = name == self._last_matrix(self._half)  # a half's output is then one product away
        return x + (linear(inputs[number], self.tensor(name)) if is_known else self._branch(self._half, x))

    def _branch(self, half: int, x: Floats) -> Floats:
        layer, is_feed_forward = divmod(half, 2)
        if is_feed_forward:
            return feed_forward_branch(self, layer, x)
        cos, sin = self._rotation
        return attention_branch(self, layer, x, cos[: len(x)], sin[: len(x)])

    @cached_property
    def _rotation(self) -> tuple[Floats, Floats]:
        longest = max(map(len, self._sequences))
        return rotary_table(np.arange(longest), self.config.head_dim, self.config.rope_theta)

    @cached_property
    def _states(self) -> list[Floats]:
        return embedded(self._checkpoint, self._sequences)

    def _resume(self, half: int) -> None:
        """Take the stream behind as many halves as possible, at most `half`, from a file that is sound."""
        found = [path for path in self._place.folder.glob(f"stream-*{_SUFFIX}") if _half_of(path) <= half]
        lengths = [len(ids) for ids in self._sequences]
        shape = (sum(lengths), self.config.hidden_size)
        for path in sorted(found, key=_half_of, reverse=True):
            whole = _read(path, shape)
            if whole is not None:
                self._half = _half_of(path)
                self.__dict__["_states"] = np.split(whole, np.cumsum(lengths)[:-1])
                return

    def _keep(self) -> None:
        """Write the stream to a file, and remove those that no tensor asks for any more.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        path = self._place.folder / f"stream-{self._half}{_SUFFIX}"
        partial = path.with_suffix(".partial")
        data = np.ascontiguousarray(np.concatenate(self._states), "<f4").data
        try:
            with partial.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            for older in self._place.folder.glob(f"stream-*{_SUFFIX}"):
                if _half_of(older) < self._half - 1:
                    older.unlink()
        except OSError as cause:
            raise QuantizeError(f"{path}: cannot be written ({cause.strerror}); make room or check the disk") from cause


def _read(path: Path, shape: tuple[int, int]) -> Floats | None:
    """Return what a file of the stream holds; None where it is not as it was written: it is computed again then."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    content = memoryview(data)[_DIGEST_BYTES:]
    if len(content) != 4 * shape[0] * shape[1] or hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
        return None
    return np.frombuffer(content, "<f4").reshape(shape)


def _half_of(path: Path) -> int:
    return int(path.stem.removeprefix("stream-"))
