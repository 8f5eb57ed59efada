"""Logits as engines compute them, with their own rounding of activations, K and V: this engine's and llama.cpp's.

Owns how each is asked for the scored places of a window. Invariant: an engine gets the window's ids as they are, <bos>
included, in one prompt, and nothing of another window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local.bench.cards import usable_cores
from cg_local.bench.engines import OWN_NAME
from cg_local.bench.peers import llama_worker
from cg_local.bench.protocol import WorkerProcess
from cg_local.errors import QualityError
from cg_local.quality.models import FOLDER, ComparedModel
from cg_local.quant.corpus_windows import Window

Floats = NDArray[np.float32]
LLAMA_NAME = "llama.cpp"
# How K and V are kept -> the name of llama.cpp's type; both 8-bit types have a scale for each 32 values.
LLAMA_KV_TYPES: Mapping[str, str] = {"float16": "f16", "float32": "f32", "int8": "q8_0"}


@dataclass(frozen=True)
class EngineSettings:
    """How an engine computes.

    Attributes:
        kv_dtype: how K and V are kept, a key of LLAMA_KV_TYPES.
        activations: of this engine, how inputs of products with 8-bit weights are rounded: "int8" or "int16".
        num_threads: None: as the engine chooses.
    """

    kv_dtype: str = "float16"
    activations: str = "int8"
    num_threads: int | None = None


class Engine(Protocol):
    """Computes logits.

    Attributes:
        name: OWN_NAME or LLAMA_NAME.
    """

    name: str

    def scored_logits(self, window: Window) -> Floats:
        """Return the logits that predict a window's scored tokens, float32 [num_scored, vocab_size or more]."""


@contextmanager
def engine_of(
    model: ComparedModel, settings: EngineSettings, max_context: int, peer_python: str | None
) -> Iterator[Engine]:
    """Start the engine that runs a model folder or a GGUF file; it ends with the context.

    Args:
        model: a folder, or a GGUF file where `peer_python` is given.
        settings: how it computes.
        max_context: tokens of the longest window.
        peer_python: an interpreter that has llama-cpp-python.

    Raises:
        BenchmarkError: llama.cpp cannot be started or cannot load the file.
        CapacityError: the memory that is free does not hold the model.
    """
    if model.kind == FOLDER:
        yield OwnEngine(model.path, settings, max_context)
        return
    if peer_python is None:
        raise QualityError(f"{model.path}: only llama.cpp runs a GGUF file; give an interpreter by --peer-python")
    with llama_worker(peer_python) as worker, TemporaryDirectory(prefix="cg-local-quality-") as folder:
        yield LlamaEngine(worker, model.path, settings, max_context, Path(folder))


class OwnEngine:
    """cg-local on a model folder.

    Args:
        path: of the folder.
        settings: how it computes.
        max_context: tokens of the longest window.
    """

    name = OWN_NAME

    def __init__(self, path: Path, settings: EngineSettings, max_context: int) -> None:
        from cg_local.runtime import load

        self._model = load(
            path,
            max_context=max_context,
            num_threads=settings.num_threads,
            activations=settings.activations,
            kv_dtype=settings.kv_dtype,
            speculation=False,
        )

    def scored_logits(self, window: Window) -> Floats:
        """See `Engine`."""
        return self._model.logits(window.token_ids)[window.scored_from - 1 : -1]


class LlamaEngine:
    """llama.cpp on a GGUF file, in a process of its own.

    Args:
        worker: started.
        path: of the file.
        settings: how it computes; activations are llama.cpp's own.
        max_context: tokens of the longest window.
        folder: for the logits on their way.
    """

    name = LLAMA_NAME

    def __init__(
        self, worker: WorkerProcess, path: Path, settings: EngineSettings, max_context: int, folder: Path
    ) -> None:
        self._worker, self._file = worker, folder / "logits"
        worker.ask(
            "load",
            model=str(path),
            num_threads=settings.num_threads or usable_cores(),
            max_context=max_context,
            kv_type=LLAMA_KV_TYPES[settings.kv_dtype],
        )

    def scored_logits(self, window: Window) -> Floats:
        """See `Engine`."""
        found = self._worker.ask(
            "batch_logits",
            token_ids=list(window.token_ids[:-1]),
            first=window.scored_from - 1,
            destination=str(self._file),
        )
        logits: Floats = np.fromfile(self._file, "<f4").reshape(found["shape"])
        return logits
