"""The peers: which files they run, how those are made from the same weights, and that they are the same.

This file owns the GGUF files and where the peers' programs are. It measures nothing. Invariant: a peer is only measured
on a file whose recorded sources are those of the model beside it, or after a notice that nothing is recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from cg_local.bench.protocol import WorkerProcess
from cg_local.errors import BenchmarkError

LLAMA_WORKER = Path(__file__).with_name("llama_worker.py")
# Name of a quantization -> the end of its file's name.
FILE_TYPES: Mapping[str, str] = {
    kind: kind.lower() for kind in ("Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS")
}
INSTALL = "run `pip install llama-cpp-python` in an environment and give its interpreter with --peer-python"

Say = Callable[[str], None]


def llama_worker(python: str, name: str = "llama.cpp") -> WorkerProcess:
    """Start a worker of llama.cpp.

    Args:
        python: an interpreter that has llama-cpp-python.
        name: what messages call it.

    Raises:
        BenchmarkError: the interpreter cannot be started.
    """
    return WorkerProcess(name, [python, str(LLAMA_WORKER)])


def llama_bench() -> str | None:
    """Return the path of llama.cpp's own benchmark program where there is one on the PATH."""
    return shutil.which("llama-bench")


def own_python() -> str | None:
    """Return this interpreter where it has llama-cpp-python."""
    return sys.executable if find_spec("llama_cpp") is not None else None


def peer_file(folder: Path, kind: str) -> Path:
    """Return where the GGUF file of a quantization lies in a folder, or will lie."""
    found = sorted(path for path in folder.glob("*.gguf") if path.stem.lower().endswith(FILE_TYPES[kind]))
    return found[0] if found else folder / f"model-{FILE_TYPES[kind]}.gguf"


def make_peer_files(
    checkpoint: Path,
    folder: Path,
    kinds: tuple[str, ...],
    python: str,
    *,
    say: Say,
    importance: Path | None = None,
) -> None:
    """Write the GGUF files that a folder lacks: the weights as they are, then llama.cpp's own quantizations of them.

    Args:
        checkpoint: published weights.
        folder: where the files go; made when missing.
        kinds: keys of FILE_TYPES.
        python: an interpreter that has llama-cpp-python.
        say: told what is done.
        importance: mean squares of each matrix's inputs, an .npz of float32 [inputs] by GGUF name; None: without.

    Raises:
        BenchmarkError: llama.cpp cannot quantize, or the folder cannot be made.
        ExportError, CheckpointError: the weights cannot be written or read.
    """
    missing = [kind for kind in kinds if not peer_file(folder, kind).exists()]
    if not missing:
        return
    from cg_local.checkpoint import open_checkpoint
    from cg_local.gguf_export import export_gguf

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise BenchmarkError(f"{folder}: cannot be made ({cause.strerror}); name another folder") from cause
    exact = folder / f".exact-{os.getpid()}.gguf.partial"
    opened = open_checkpoint(checkpoint)
    try:
        say(f"writing {checkpoint.name} as GGUF")
        export_gguf(opened, exact)
        for kind in missing:
            say(f"quantizing {checkpoint.name} to {kind}")
            _quantize(exact, peer_file(folder, kind), kind, python, importance)
    finally:
        exact.unlink(missing_ok=True)


def _quantize(source: Path, destination: Path, kind: str, python: str, importance: Path | None) -> None:
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        with llama_worker(python) as worker:
            places = {"source": str(source), "destination": str(partial)}
            if importance is not None:
                places["importance"] = str(importance)
            worker.ask("quantize", **places, file_type=FILE_TYPES[kind], num_threads=0)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def check_sources(file: Path, recorded: str | None, sources: object) -> str | None:
    """Compare where a GGUF file and a model folder come from.

    Args:
        file: the GGUF file.
        recorded: JSON object of file name -> SHA-256 in its metadata; None: it has none.
        sources: file name -> {"sha256": digest} in the model folder's metadata; anything else: nothing is recorded.

    Returns:
        A notice when it cannot be told; None when both come from the same weights.

    Raises:
        BenchmarkError: they come from different weights.
    """
    if recorded is None or not isinstance(sources, Mapping):
        return f"{file}: does not say which weights it was made from; it is taken as the same model"
    ours = {name: entry["sha256"] for name, entry in sources.items() if name.endswith(".safetensors")}
    theirs = {name: digest for name, digest in json.loads(recorded).items() if name.endswith(".safetensors")}
    if ours != theirs:
        raise BenchmarkError(
            f"{file}: made from other weights than the model folder; name another --peer-models folder, or make the "
            "files again from the checkpoint that was quantized"
        )
    return None
