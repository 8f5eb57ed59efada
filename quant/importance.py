"""What the inputs of each matrix look like on average: the statistics that `imp` rounds by, and the packs they come in.

This file owns the statistics and their file. It runs no model (`calibration` does) and rounds nothing (`feedback`
does). Invariant: a pack fits a checkpoint exactly when it was made from the same weights, by their fingerprint, and
every matrix finds statistics of its width.

The mean product of a matrix's inputs, H, is kept as a diagonal and a few directions, H = diag(d) + V V'. The matrices
that share an input share its statistics; those of the embedding describe the head's input.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from cg_local.atomic_file import replace_file
from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, HEAD, matrix_shapes
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.fixed_order import in_order
from cg_local.safetensors_file import SafetensorsFile

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

FILE_NAME = "importance.safetensors"
METADATA_KEY = "cg_local.importance"
VERSION = 2
RANK = 32
OVERSAMPLING = 8  # further directions that the iteration carries along, dropped at its end
ITERATIONS = 4
CAPPED_SHARE = 0.001
"""Rows of inputs are shortened to the length that this share of those behind each sequence's first exceeds: the first
token of Gemma has by far the longest ones, once in every text, and the statistics would describe little else."""

_REMEDY = "make it again with `cg-local calibrate`"
# Matrices with the input of another one.
_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@dataclass(frozen=True)
class InputStatistics:
    """The mean product H = diag(d) + V V' of the inputs of a matrix.

    Attributes:
        diagonal: float32 [columns], d.
        directions: float32 [columns, rank], V, of falling length; RANK of them, or as many as there are columns.
    """

    diagonal: Floats
    directions: Floats

    @property
    def mean_square(self) -> Floats:
        """The diagonal of H: the mean square of each input, float32 [columns]."""
        squares: Floats = self.diagonal + (self.directions * self.directions).sum(axis=1)
        return squares

    @property
    def as_doubles(self) -> tuple[Doubles, Doubles]:
        """The diagonal and the directions in float64."""
        return self.diagonal.astype(np.float64), self.directions.astype(np.float64)

    @classmethod
    def of(cls, inputs: Sequence[Floats], num_threads: int = 1) -> InputStatistics:
        """Compute the statistics of inputs.

        The directions are found by orthogonal iteration from fixed random ones.

        Args:
            inputs: of each sequence, float32 [num_tokens, columns].
            num_threads: among which the sequences are shared out.

        Raises:
            QuantizeError: an input is not finite.
        """
        rows, columns = capped_rows(inputs), inputs[0].shape[1]
        whole = np.zeros(columns)
        for x in rows:
            whole += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        directions = _principal_directions(rows, columns, num_threads)
        diagonal = np.maximum(whole - (directions * directions).sum(axis=1), 0.0)
        return cls(diagonal.astype(np.float32), directions.astype(np.float32))


def capped_rows(inputs: Sequence[Floats]) -> list[Floats]:
    """Return the inputs with the longest rows shortened (see CAPPED_SHARE) and over the root of the number of rows.

    So the sum of their products x'x is the mean product.

    Args:
        inputs: of each sequence, its first token first, float32 [num_tokens, columns].

    Raises:
        QuantizeError: an input is not finite, or so large that float32 cannot hold the mean products.
    """
    lengths = [np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)) for x in inputs]
    if not all(np.isfinite(found).all() for found in lengths):
        raise QuantizeError("a layer's inputs are not finite: the weights overflow in float32; pass --method fast")
    later = np.concatenate([found[1:] for found in lengths])
    cap = np.quantile(later, 1 - CAPPED_SHARE) if len(later) else math.inf
    root = math.sqrt(sum(map(len, lengths)))
    _check_products(lengths, cap, inputs[0].shape[1])
    factors = [np.minimum(1.0, cap / np.maximum(found, np.finfo(np.float64).tiny)) / root for found in lengths]
    return [x * factor[:, None].astype(np.float32) for x, factor in zip(inputs, factors, strict=True)]


def _check_products(lengths: Sequence[Doubles], cap: float, columns: int) -> None:
    """Refuse rows of these lengths, at most `cap`, whose mean product might leave float32 where it is computed."""
    capped = np.minimum(np.concatenate(lengths), cap)
    # No element of H exceeds its trace. The iteration's first basis, of normal numbers, has vectors of about
    # sqrt(columns); twice that is more than any of them.
    limit = np.finfo(np.float32).max / (2 * math.sqrt(columns))
    if np.square(capped).mean() > limit:
        raise QuantizeError(
            f"a layer's inputs are as large as {capped.max():.0e}: float32 cannot hold their mean products; check the "
            "weights, or quantize them with --method fast"
        )


def _principal_directions(rows: Sequence[Floats], columns: int, num_threads: int) -> Doubles:
    """Return the eigenvectors of the sum of x'x with the largest eigenvalues, times their roots, [columns, RANK]."""
    width = min(columns, RANK + OVERSAMPLING)
    basis = np.random.default_rng(0).standard_normal((columns, width))
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(_product(rows, basis, num_threads))
    values, vectors = np.linalg.eigh(basis.T @ _product(rows, basis, num_threads))
    order = np.argsort(-values)[:RANK]
    directions: Doubles = basis @ vectors[:, order] * np.sqrt(np.maximum(values[order], 0.0))
    return directions


def _product(rows: Sequence[Floats], basis: Doubles, num_threads: int) -> Doubles:
    narrow, total = basis.astype(np.float32), np.zeros_like(basis)
    for product in in_order(lambda x: x.T @ (x @ narrow), rows, num_threads):
        total += product
    return total


@dataclass(frozen=True)
class ImportancePack:
    """Statistics for every matrix of a model.

    Attributes:
        statistics: by name of the matrix, of those that share an input the first.
        sensitivities: by name of the matrix: nats of divergence for a relative output error of 1; may be empty.
        weights: `fingerprint.fingerprint` of the weights that they were collected with.
        document: where they come from: texts, tokens, digests, licences.
    """

    statistics: Mapping[str, InputStatistics]
    sensitivities: Mapping[str, float]
    weights: str
    document: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over statistics and sensitivities."""
        digest = hashlib.sha256(json.dumps(dict(self.sensitivities), sort_keys=True).encode())
        for name, found in sorted(self.statistics.items()):
            digest.update(name.encode())
            for array in (found.diagonal, found.directions):
                digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()

    def of(self, name: str) -> InputStatistics:
        """Return the statistics of a matrix's input."""
        return self.statistics[input_name(name)]

    def misfit(self, checkpoint: Checkpoint) -> str | None:
        """Say why the pack does not belong to these weights; None: it does."""
        for name, shape in matrix_shapes(checkpoint.config, has_separate_head=False).items():
            found = self.statistics.get(input_name(name))
            width = None if found is None else len(found.diagonal)
            if width != shape[1]:
                return (
                    f"it was made for another model: statistics of {width or 'no'} inputs for {name}, {shape[1]} needed"
                )
        if self.weights != fingerprint(checkpoint):
            return "it was made for other weights of the same shape (another training or fine-tune)"
        return None

    def save(self, path: Path) -> None:
        """Write the pack to a file, whole or not at all.

        Raises:
            SettingsError: it cannot be written.
        """
        arrays: dict[str, Floats] = {}
        for name, found in self.statistics.items():
            arrays |= {f"{name}.diagonal": found.diagonal, f"{name}.directions": found.directions}
        own = {"version": VERSION, "weights": self.weights, "sensitivities": dict(self.sensitivities)}
        told = {**own, **self.document}
        replace_file(path, save(arrays, {METADATA_KEY: json.dumps(told)}))

    @classmethod
    def load(cls, path: Path) -> ImportancePack:
        """Read a pack.

        Raises:
            QuantizeError: it is no importance pack, or damaged.
        """
        file = SafetensorsFile(path, QuantizeError, remedy=_REMEDY)
        told = _metadata(file)
        arrays = {name: _array(file, name) for name in file.entries}
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays))
        try:
            statistics = {n: InputStatistics(arrays[f"{n}.diagonal"], arrays[f"{n}.directions"]) for n in names}
        except KeyError as cause:
            raise QuantizeError(f"{path}: {cause.args[0]} is missing; {_REMEDY}") from cause
        for name, found in statistics.items():
            if len(found.diagonal) != len(found.directions):
                raise QuantizeError(f"{path}: {name}.directions holds no statistics; {_REMEDY}")
        sensitivities, weights = told.pop("sensitivities"), told.pop("weights")
        return cls(statistics, sensitivities, weights, told)


def _metadata(file: SafetensorsFile) -> dict[str, Any]:
    """Return what a pack tells about itself, without its version.

    Raises:
        QuantizeError: it is no pack, or one of another version.
    """
    try:
        told = json.loads(file.metadata[METADATA_KEY])
        version = told.pop("version")
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as cause:
        raise QuantizeError(f"{file.path}: not an importance pack; {_REMEDY}") from cause
    if version != VERSION:
        raise QuantizeError(f"{file.path}: an importance pack of version {version}, {VERSION} is read; {_REMEDY}")
    sensitivities = told.get("sensitivities")
    is_sound = isinstance(sensitivities, dict) and all(map(_is_sensitivity, sensitivities.values()))
    if not is_sound or not isinstance(told.get("weights"), str):
        raise QuantizeError(f"{file.path}: not an importance pack; {_REMEDY}")
    return dict(told)


def _is_sensitivity(value: object) -> bool:
    return isinstance(value, float | int) and 0 <= value < math.inf


def _array(file: SafetensorsFile, name: str) -> Floats:
    """Read one array of a pack.

    Raises:
        QuantizeError: it cannot be what its name says.
    """
    entry, is_diagonal = file.entries[name], name.endswith(".diagonal")
    if entry.dtype == "F32" and len(entry.shape) == (1 if is_diagonal else 2):
        array: Floats = file.read(name).view("<f4").reshape(entry.shape)
        if np.isfinite(array).all() and not (is_diagonal and (array < 0).any()):
            return array
    raise QuantizeError(f"{file.path}: {name} holds no statistics; {_REMEDY}")


def input_name(name: str) -> str:
    """Return the matrix under whose name a pack keeps the statistics of this matrix's input."""
    if name == HEAD:
        return EMBEDDING
    for matrix, first in _SAME_INPUT.items():
        if name.endswith(f".{matrix}.weight"):
            return name.replace(f".{matrix}.", f".{first}.")
    return name
