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
from collections.abc import Sequence
from functools import cached_property
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
from cg_local.quant.hidden_states import FINAL_NORM, embedded
from cg_local.quant.importance import capped_rows, input_name
from cg_local.quant.schemes import GAIN_FORMAT, TensorPlan
from cg_local.reference import attention_branch, feed_forward_branch, linear, rms_norm, rotary_table

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

BLOCK_COLUMNS = 2048
"""Wider inputs (those of the down projection) are treated in blocks of so many columns: the statistics of 2B's 16,384
inputs would take 2 GiB and their inverse half an hour a layer."""

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
        self._shared: tuple[str, Guide | None] = "", None

    def order(self, tensors: Sequence[TensorPlan]) -> Sequence[TensorPlan]:
        """Gains, then the layers' matrices, then embedding and head."""
        return sorted(tensors, key=lambda tensor: (tensor.format != GAIN_FORMAT, tensor.name in (EMBEDDING, HEAD)))

    def begin(self, place: Workplace) -> None:
        """Take up the residual stream where an earlier run left it."""
        self._stream = _Stream(self._checkpoint, self._sequences, place)

    def guide_of(self, tensor: TensorPlan) -> Guide | None:
        """Return the statistics of a matrix's inputs, made ready for rounding."""
        if tensor.name == EMBEDDING and self._checkpoint.has_separate_head:
            return None  # a table of inputs, of whose columns nothing is known
        name = input_name(tensor.name)
        if name != self._shared[0]:  # q, k and v have one input, gate and up another
            blocks = _products(capped_rows(self._stream.inputs(name)))
            importance = np.concatenate([np.diag(block) for block in blocks]).astype(np.float32)
            self._shared = name, Guide(importance, None if tensor.name == EMBEDDING else DenseFeedback.of(blocks))
        return self._shared[1]

    def done(self, tensor: TensorPlan) -> None:
        """Let the layers behind a matrix see it as it stands in the file."""
        super().done(tensor)
        self._stream.done(tensor.name)


def _products(rows: Sequence[Floats]) -> tuple[Doubles, ...]:
    """Return the blocks on the diagonal of the sum of x'x."""
    columns = rows[0].shape[1]
    blocks = []
    for start in range(0, columns, BLOCK_COLUMNS):
        parts = (x[:, start : start + BLOCK_COLUMNS] for x in rows)
        total = np.zeros((min(BLOCK_COLUMNS, columns - start),) * 2)
        for part in parts:
            total += part.T @ part
        blocks.append(total)
    return tuple(blocks)


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
        if name not in self._held:
            whole = dequantize(self._place.packed(name)) if name in self._finished else self._checkpoint.tensor(name)
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
            found = [self._found(half, x) for x in self._states]
        finally:
            self._wanted = None
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
            name, inputs = self._last
            is_known = name == self._last_matrix(self._half)  # a half's output is then one product away
            for index, x in enumerate(self._states):
                added = linear(inputs[index], self.tensor(name)) if is_known else self._branch(self._half, x)
                self._states[index] = x + added
            self._last = "", []
            self._held.clear()
            self._half += 1
            self._keep()

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
