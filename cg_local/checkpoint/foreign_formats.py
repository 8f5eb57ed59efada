"""Recognizing what is not a Hugging Face safetensors checkpoint, to say what it is and what to use instead.

This file owns the signs by which other distributions of the same models are known. It reads no weights. Invariant:
every message names what was found, what is needed, and what to do.

Source of the formats: the files of the official CodeGemma distributions (GGUF, PyTorch, Keras, Flax) and of the tools
that derive from them (PEFT adapters, gemma.cpp).
"""

from __future__ import annotations

import re
from pathlib import Path

NEEDED = (
    "needed is a folder in the Hugging Face layout: config.json, tokenizer.model and model.safetensors, or "
    "model.safetensors.index.json with its shards (google/codegemma-2b, google/codegemma-7b-it, ...)"
)

# First bytes of a file -> what it is. Source: the formats' own specifications.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "a Keras weights file (HDF5)"),
    (b"PK\x03\x04", "a PyTorch or zip archive"),
    (b"\x80\x02", "a PyTorch pickle"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"),
)

# Pattern of a name inside a folder -> what the folder is. The first match counts.
FOLDER_SIGNS: tuple[tuple[str, str], ...] = (
    (r"adapter_(config\.json|model\..*)", "a PEFT adapter: merge it into its base model and save that"),
    (r"snapshots", "an entry of the Hugging Face cache: give the folder snapshots/<revision> inside it"),
    (r".*\.gguf", "a folder of GGUF files"),
    (r"pytorch_model.*\.bin|.*\.(ckpt|pt|pth)", "a PyTorch checkpoint"),
    (r".*\.h5", "a Keras preset"),
    (r"_METADATA|_CHECKPOINT_METADATA|manifest\.ocdbt|checkpoint|.*\.msgpack", "a Flax/orbax checkpoint"),
    (r".*\.sbs", "a gemma.cpp model"),
    (r".*\.safetensors\.?.*", "safetensors files of other names, or an unfinished download"),
)


def describe_file(path: Path) -> str:
    """Say what a file is, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    for signature, meaning in SIGNATURES:
        if head.startswith(signature):
            return meaning
    if path.suffix == ".safetensors":
        return "a single safetensors file: give the folder that holds it and its config.json"
    return "a file of no known weight format"


def describe_folder(path: Path) -> str:
    """Say what a folder without model.safetensors and without an index is, by the names in it."""
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty folder"
    for pattern, meaning in FOLDER_SIGNS:
        if any(re.fullmatch(pattern, name) for name in names):
            return meaning
    for name in names:
        # Orbax as published on Kaggle: a tokenizer and one folder with the arrays.
        if any((path / name / sign).exists() for sign in ("_METADATA", "_CHECKPOINT_METADATA", "checkpoint")):
            return "a Flax/orbax checkpoint"
        if (path / name / "config.json").exists():
            return f"a folder of model folders: give one of them, such as {path / name}"
    return "a folder without weights"
