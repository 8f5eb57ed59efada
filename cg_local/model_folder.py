"""The model folder on disk: its layout, and opening it by mapping.

This file owns which files and tensors a model folder has, in which order and with which metadata. It does not own the
bits within a tensor (`packing`), the writing (`model_folder_writer`) or the choice of formats (`quant`). Invariant: the
layout of model.safetensors follows from config.json and the format of each matrix alone (`file_layout`); a file that
deviates in a name, dtype, shape or offset is refused at opening, and parts start at multiples of ALIGNMENT bytes.

A matrix X is stored as the tensors X.codes, X.scales, X.super_scales and X.codebook, as its format needs; a norm gain
as X, float32, with the 1 of (1 + w) already added. Where a length is no multiple of ALIGNMENT, the tensor NAME.padding
fills up. Metadata is one JSON document under METADATA_KEY.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.errors import ModelFolderError
from cg_local.packing import PackedMatrix, part_layout
from cg_local.safetensors_file import SafetensorsFile, shown

FORMAT_VERSION = 1
METADATA_KEY = "cg_local"
NORM_CONVENTION = "gain=1+w,f32"
ALIGNMENT = 64
CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE = "config.json", "tokenizer.model", "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
READ_BYTES = 16 << 20

REMEDY = "run `cg-local quantize SOURCE DEST` again"
DTYPE_NAMES: Mapping[str, str] = {"uint8": "U8", "int8": "I8", "uint16": "U16", "float16": "F16", "float32": "F32"}

TensorLayout = tuple[str, str, tuple[int, ...]]
Layout = list[TensorLayout]


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder.

    Attributes:
        path: of the folder.
        config: of the model.
        metadata: the JSON document as written by the quantizer.
        scheme: its name of the choice of formats: "q4", "q8", "bf16".
        matrices: by Hugging Face name; parts are read-only views of the mapped file. "lm_head.weight" is there only
            when the output head is not the embedding.
        gains: float32 [hidden_size] by the norm's Hugging Face name: what a normalized row is multiplied by.
        tokenizer_path: of tokenizer.model.
    """

    path: Path
    config: ModelConfig
    metadata: Mapping[str, object]
    scheme: str
    matrices: Mapping[str, PackedMatrix]
    gains: Mapping[str, NDArray[np.float32]]
    tokenizer_path: Path

    @property
    def is_chat_model(self) -> bool:
        """Whether the model is tuned to answer questions: a chat template was published with its weights.

        Folders written before this was recorded tell by their name, as Google's do (codegemma-7b-it).
        """
        recorded = self.metadata.get("has_chat_template")
        if isinstance(recorded, bool):
            return recorded
        return not {"it", "instruct", "chat"}.isdisjoint(re.split(r"[^a-z0-9]+", self.path.resolve().name.lower()))


def matrix_shapes(config: ModelConfig, *, has_separate_head: bool) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every matrix by name, in the order of the file."""
    shapes = {name: (shape[0], shape[1]) for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    if has_separate_head:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def gain_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every norm gain by name, in the order of the file."""
    return {name: shape for name, shape in config.tensor_shapes().items() if len(shape) == 1}


def file_layout(config: ModelConfig, formats: Mapping[str, str]) -> Layout:
    """Return (name, dtype, shape) of every tensor of model.safetensors in order: gains, then matrices.

    Args:
        config: of the model.
        formats: format of each matrix; HEAD among them when it is separate.

    Raises:
        ValueError: a format is unknown or does not divide the matrix's columns.
    """
    layout: Layout = []
    for name, shape in gain_shapes(config).items():
        layout += _with_padding(name, np.dtype(np.float32), shape)
    for name, shape in matrix_shapes(config, has_separate_head=HEAD in formats).items():
        for part, (dtype, part_shape) in part_layout(formats[name], shape).items():
            layout += _with_padding(f"{name}.{part}", dtype, part_shape)
    return layout


def open_model_folder(path: str | Path, verify: bool = False) -> ModelFolder:
    """Map a model folder after judging everything about it that does not need reading all weights.

    Args:
        path: of the folder.
        verify: also read every byte and compare the digests; seconds for a large model.

    Raises:
        ModelFolderError: not a model folder, of another format version, damaged, incomplete or changed.
        ConfigError: config.json is not one of a model that cg-local runs.
    """
    folder = Path(path)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelFolderError(_describe_other(folder))
    file = SafetensorsFile(folder / WEIGHTS_FILE, ModelFolderError, remedy=REMEDY)
    if METADATA_KEY not in file.metadata:
        raise ModelFolderError(_describe_other(folder))
    document = _Document.parse(file.metadata[METADATA_KEY], str(file.path))
    config = _read_config(folder, document)
    tokenizer_path = folder / TOKENIZER_FILE
    if not tokenizer_path.is_file():
        raise ModelFolderError(f"{tokenizer_path}: missing; copy it from the published model, or {REMEDY}")
    _check_entries(file, _expected_layout(config, document, str(file.path)), document)
    if verify:
        _verify(file, tokenizer_path, document)
    shapes = matrix_shapes(config, has_separate_head=HEAD in document.formats)
    matrices = {name: _packed_matrix(file, name, document.formats[name], shape) for name, shape in shapes.items()}
    gains = {name: file.bytes_of(name).view(np.float32) for name in gain_shapes(config)}
    return ModelFolder(
        path=folder,
        config=config,
        metadata=MappingProxyType(document.values),
        scheme=document.scheme,
        matrices=MappingProxyType(matrices),
        gains=MappingProxyType(gains),
        tokenizer_path=tokenizer_path,
    )


@dataclass(frozen=True)
class _Document:
    """The metadata document, its required members judged."""

    values: dict[str, object]
    where: str
    scheme: str
    formats: Mapping[str, str]
    digests: Mapping[str, str]
    config_digest: str
    tokenizer_digest: str

    @classmethod
    def parse(cls, text: str, where: str) -> _Document:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as cause:
            raise ModelFolderError(f"{where}: its metadata {METADATA_KEY!r} is not JSON; {REMEDY}") from cause
        if not isinstance(values, dict):
            raise ModelFolderError(f"{where}: its metadata is a JSON {type(values).__name__}, not an object; {REMEDY}")
        _check_version(values.get("format_version"), where)
        if values.get("norm_convention") != NORM_CONVENTION:
            found = shown(values.get("norm_convention"))
            raise ModelFolderError(f"{where}: norm_convention is {found}, not {NORM_CONVENTION!r}; {REMEDY}")
        return cls(
            values=values,
            where=where,
            scheme=_text(values, "scheme", where),
            formats=_text_map(values, "formats", where),
            digests=_text_map(values, "sha256", where),
            config_digest=_text(values, "config_sha256", where),
            tokenizer_digest=_text(values, "tokenizer_sha256", where),
        )


def _check_version(version: object, where: str) -> None:
    if version == FORMAT_VERSION and type(version) is int:
        return
    if type(version) is int and version > FORMAT_VERSION:
        remedy = "it was written by a newer cg-local: run `pip install --upgrade cg-local`"
    else:
        remedy = "rewrite it: run `cg-local quantize SOURCE DEST --overwrite`"
    raise ModelFolderError(f"{where}: format version {shown(version)}, this cg-local reads {FORMAT_VERSION}; {remedy}")


def _text(values: Mapping[str, object], key: str, where: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise ModelFolderError(f"{where}: metadata {key} is {shown(value)}, not a short text; {REMEDY}")
    return value


def _text_map(values: Mapping[str, object], key: str, where: str) -> dict[str, str]:
    value = values.get(key)
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ModelFolderError(f"{where}: metadata {key} is not an object of texts; {REMEDY}")
    return value


def _read_config(folder: Path, document: _Document) -> ModelConfig:
    path = folder / CONFIG_FILE
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise ModelFolderError(f"{path}: {cause.strerror}; copy it from the published model, or {REMEDY}") from cause
    if hashlib.sha256(data).hexdigest() != document.config_digest:
        raise ModelFolderError(f"{path}: changed since the model was quantized; restore the published one, or {REMEDY}")
    return ModelConfig.from_bytes(data, str(path))


def _expected_layout(config: ModelConfig, document: _Document, where: str) -> Layout:
    """The layout that config and formats ask for, after judging the formats."""
    shapes = matrix_shapes(config, has_separate_head=HEAD in document.formats)
    if document.formats.keys() != shapes.keys():
        name = min(document.formats.keys() ^ shapes.keys())
        fault = "has no format for" if name in shapes else "has a format for the unknown matrix"
        raise ModelFolderError(f"{where}: metadata {fault} {shown(name)}; {REMEDY}")
    for name, shape in shapes.items():
        try:
            part_layout(document.formats[name], shape)
        except ValueError as cause:
            raise ModelFolderError(f"{where}: matrix {name}: {cause}; {REMEDY}") from cause
    return file_layout(config, document.formats)


def _check_entries(file: SafetensorsFile, layout: Layout, document: _Document) -> None:
    """Compare the file's tensors with the layout: names, dtypes, shapes, order and alignment."""
    expected = {name: (dtype, shape) for name, dtype, shape in layout}
    for found, fault in ((file.entries.keys(), "tensor"), (document.digests.keys(), "digest of tensor")):
        if found != expected.keys():
            name = min(found ^ expected.keys())
            verb = "is missing" if name in expected else "belongs to no part of the model"
            raise ModelFolderError(f"{file.path}: {fault} {shown(name)} {verb}; {REMEDY}")
    for name, entry in file.entries.items():
        if (entry.dtype, entry.shape) != expected[name]:
            needed = f"{expected[name][0]} {list(expected[name][1])}"
            raise ModelFolderError(
                f"{file.path}: tensor {name} is {entry.dtype} {list(entry.shape)}, needed {needed}; {REMEDY}"
            )
        if entry.offset % ALIGNMENT and not name.endswith(".padding"):
            raise ModelFolderError(
                f"{file.path}: tensor {name} starts at byte {entry.offset:,}, no multiple of {ALIGNMENT}; {REMEDY}"
            )


def _verify(file: SafetensorsFile, tokenizer_path: Path, document: _Document) -> None:
    """Compare every digest; reads with pread, so that a file cut meanwhile is an error and no crash."""
    for name, entry in file.entries.items():
        digest = hashlib.sha256()
        for start in range(0, entry.num_bytes, READ_BYTES):
            digest.update(file.read(name, start, min(start + READ_BYTES, entry.num_bytes)).data)
        if digest.hexdigest() != document.digests[name]:
            raise ModelFolderError(f"{file.path}: tensor {name}: its bytes do not match their digest; {REMEDY}")
    if hashlib.sha256(tokenizer_path.read_bytes()).hexdigest() != document.tokenizer_digest:
        raise ModelFolderError(f"{tokenizer_path}: changed since the model was quantized; restore it, or {REMEDY}")


def _packed_matrix(file: SafetensorsFile, name: str, format: str, shape: tuple[int, int]) -> PackedMatrix:
    parts = {
        part: file.bytes_of(f"{name}.{part}").view(dtype).reshape(part_shape)
        for part, (dtype, part_shape) in part_layout(format, shape).items()
    }
    return PackedMatrix(format, shape, MappingProxyType(parts))


def _describe_other(folder: Path) -> str:
    """Say what a path is that is not a model folder, and how to make one."""
    make = "`cg-local quantize SOURCE DEST` makes one from published weights"
    if not folder.exists():
        return f"{folder}: no such folder; give a model folder: {make}"
    if folder.is_file():
        with folder.open("rb") as file:
            if file.read(4) == b"GGUF":
                return f"{folder}: a GGUF file, not a model folder; run `cg-local quantize {folder} DEST` and use DEST"
        return f"{folder}: a file, not a model folder; {make}"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG_FILE in names and any(".safetensors" in name for name in names):
        return f"{folder}: unquantized weights, not a model folder; run `cg-local quantize {folder} DEST` and use DEST"
    if any(name.endswith(".gguf") for name in names):
        return f"{folder}: a folder of GGUF files, not a model folder; {make}"
    missing = " and ".join(name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in names)
    return f"{folder}: not a model folder ({missing or 'metadata'} missing); {make}"


def _with_padding(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Iterator[TensorLayout]:
    yield name, DTYPE_NAMES[dtype.name], shape
    missing = -int(np.prod(shape)) * dtype.itemsize % ALIGNMENT
    if missing:
        yield f"{name}.padding", "U8", (missing,)
