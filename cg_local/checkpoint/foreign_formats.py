"""Recognizing what is neither a safetensors checkpoint nor a GGUF file, to say what it is and what to use instead.

This file owns the signs by which other distributions of the same models are known. It reads no weights. Invariant:
every message names what was found, what is needed, and what to do.

The official PyTorch, Keras and Flax distributions are not read: their readers (torch, keras, orbax with JAX) are large,
and each of these distributions has a twin of the same weights in the Hugging Face layout, whose name follows from its
own.

Source of the formats: the files of the official CodeGemma distributions (PyTorch, Keras, Flax) and of the tools that
derive from them (PEFT adapters, gemma.cpp); of the names: huggingface.co/collections/google/codegemma-release.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

NEEDED = (
    "needed is a folder in the Hugging Face layout: config.json, tokenizer.model and model.safetensors, or "
    "model.safetensors.index.json with its shards; or one GGUF file"
)
# Names that distributions give to a model -> its repository. A longer name stands before those that it holds.
# Source: Kaggle's google/codegemma (flax, pytorch) and keras/codegemma.
OTHER_NAMES: tuple[tuple[str, str], ...] = (
    (r"1\.1[-_](7b[-_]it|instruct[-_]7b)", "codegemma-1.1-7b-it"),
    (r"1\.1[-_]2b", "codegemma-1.1-2b"),
    (r"7b[-_]it|instruct[-_]7b", "codegemma-7b-it"),
    (r"7b", "codegemma-7b"),
    (r"2b", "codegemma-2b"),
)

# First bytes of a file -> what it is. Source: the formats' own specifications.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "a Keras weights file (HDF5)"),
    (b"\x80\x02", "a PyTorch pickle"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"),
)

# Pattern of a name inside a folder -> what the folder is. The first match counts.
FOLDER_SIGNS: tuple[tuple[str, str], ...] = (
    (r"adapter_(config\.json|model\..*)", "a PEFT adapter: merge it into its base model and save that"),
    (r"snapshots", "an entry of the Hugging Face cache: give the folder snapshots/<revision> inside it"),
    (r".*\.gguf", "a folder of GGUF files: give one of the files"),
    (r"pytorch_model.*\.bin|.*\.(ckpt|pt|pth)", "a PyTorch checkpoint"),
    (r".*\.(h5|keras)", "a Keras preset"),
    (r"_METADATA|_CHECKPOINT_METADATA|manifest\.ocdbt|checkpoint|.*\.msgpack", "a Flax/orbax checkpoint"),
    (r".*\.sbs", "a gemma.cpp model"),
    (r".*\.safetensors\.?.*", "safetensors files of other names, or an unfinished download"),
)


def needed_instead_of(path: Path) -> str:
    """Return what is needed in place of a path, with the same model's repository where the path names the model."""
    text = "/".join(path.absolute().parts[-4:]).lower()
    found = next((name for pattern, name in OTHER_NAMES if re.search(pattern, text)), None) if "gemma" in text else None
    if found is None:
        return f"{NEEDED} (google/codegemma-2b, google/codegemma-7b-it, ...)"
    return f"{NEEDED}: `hf download google/{found} --local-dir {found}` gets these weights in that layout"


def describe_file(path: Path) -> str:
    """Say what a file is, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    for signature, meaning in SIGNATURES:
        if head.startswith(signature):
            return meaning
    if head.startswith(b"PK\x03\x04"):
        return _describe_archive(path)
    if path.suffix == ".safetensors":
        return "a single safetensors file: give the folder that holds it and its config.json"
    return "a file of no known weight format"


def _describe_archive(path: Path) -> str:
    """Say what a zip archive is, by the names in it: PyTorch since 1.6 and Keras 3 both write such archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a damaged PyTorch or zip archive"
    if any(name.endswith(("/data.pkl", "/byteorder")) for name in names):
        return "a PyTorch checkpoint"
    if any(name.endswith(".h5") for name in names):
        return "a Keras model"
    return "a zip archive: unpack it"


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
