"""From a name or folder to something that generates: shared by the benchmarks.

This file owns where a benchmark's model comes from and how it is identified in results. It measures nothing.
Invariant: the digest in a result is that of the weights file(s) that were run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cg_local
from cg_local.bench.cards import weights_digest
from cg_local.config import EngineConfig
from cg_local.engine import Engine
from cg_local.errors import CheckpointError
from cg_local.model import Model
from cg_local.model_folder import METADATA_KEY, ModelFolder, open_model_folder
from cg_local.quant import quantize
from cg_local.safetensors_file import SafetensorsFile
from cg_local.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model folder with its engine and tokenizer."""

    folder: ModelFolder
    engine: Engine
    tokenizer: Tokenizer


def model_path(name: str) -> Path:
    """Return the folder of a model: a path, or the name of a model that the package carries.

    Raises:
        CheckpointError: neither.
    """
    carried = Path(cg_local.__file__).parent / "models" / name
    for folder in (Path(name), carried):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(f"{name}: no folder with a config.json, and no model of this name; give a folder or `nano`")


def is_quantized(folder: Path) -> bool:
    """Return whether a folder holds weights in kernel layout (a model folder), not published ones."""
    weights = folder / "model.safetensors"
    return weights.is_file() and METADATA_KEY in SafetensorsFile(weights, CheckpointError).metadata


@contextmanager
def quantized_folder(folder: Path, scheme: str, work: Path | None = None) -> Iterator[Path]:
    """Give a model folder of a scheme: the folder itself if it is one, else its weights quantized.

    Args:
        folder: a model folder of this scheme, or published weights.
        scheme: "q4", "q8" or "bf16".
        work: where the result is kept and looked for by the weights' digest; None: a temporary folder, removed after.

    Raises:
        CgLocalError: the folder cannot be read, or is a model folder of another scheme.
    """
    if is_quantized(folder):
        found = open_model_folder(folder).scheme
        if found != scheme:
            raise CheckpointError(f"{folder}: a model folder of scheme {found}, asked for is {scheme}; give one of it")
        yield folder
        return
    with TemporaryDirectory(prefix="cg-local-benchmark-", ignore_cleanup_errors=True) as temporary:
        destination = (work or Path(temporary)) / f"{folder.resolve().name}-{scheme}-{weights_digest(folder)[:12]}"
        if not destination.exists():
            destination.parent.mkdir(parents=True, exist_ok=True)
            quantize(folder, destination, scheme)
        yield destination


def load(folder: Path, config: EngineConfig | None = None, *, activations: str = "int8") -> LoadedModel:
    """Map a model folder and build its engine; activations as in `cg_local.load`."""
    opened = open_model_folder(folder)
    tokenizer = Tokenizer.from_file(opened.tokenizer_path)
    engine = Engine(Model(opened, activations=activations), config, vocab_size=tokenizer.vocab_size)
    return LoadedModel(opened, engine, tokenizer)


def one_line(error: Exception) -> str:
    """Return an error's message for a person, on one line."""
    return " ".join(str(error).split())
