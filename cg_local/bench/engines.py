"""What is measured side by side, behind one face: this engine, llama.cpp in a worker, llama.cpp's own benchmark.

This file owns how each is asked. It does not know the order of measurements. Invariant: a timed record of any of them
is {"tokens": number, "seconds": [...]}: so many tokens in the sum of these seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cg_local.bench.peers import llama_worker
from cg_local.bench.protocol import WorkerProcess, inherited_environment
from cg_local.errors import BenchmarkError

OWN_NAME = "cg-local"
LLAMA_BENCH_SECONDS = 3600
# Threads of the engine that was measured before may still spin, waiting for more work.
SETTLE_SECONDS = 0.05

Record = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What an engine is loaded with.

    Attributes:
        num_threads: of the engine; None: what it chooses.
        max_context: tokens of one sequence.
        num_pages: pages of K and V of this engine, for several sequences.
    """

    num_threads: int | None
    max_context: int
    num_pages: int


class MeasuredEngine(Protocol):
    """An engine with a model, ready to be measured.

    Attributes:
        name: in tables and documents.
        file: what it runs.
        max_tokens: the longest prompt it is measured with; None: all of them.
    """

    name: str
    file: Path
    max_tokens: int | None

    def load(self, load: Load) -> Record:
        """Load the model, again when it is loaded, and return "seconds" and "version"."""

    def prefill(self, token_ids: Sequence[int]) -> Record:
        """Time a prompt of which nothing is cached, up to the choice of the next token."""

    def decode(self, token_ids: Sequence[int], new_tokens: int) -> Record:
        """Time single tokens after a context."""

    def memory(self) -> Record:
        """Return "peak_resident_bytes" of its process, if known, and what else it knows."""

    def close(self) -> None:
        """End it."""


class WorkerEngine:
    """An engine in a worker process.

    Args:
        name: in tables and documents.
        file: model folder or GGUF file.
        worker: its process.
        max_tokens: the longest prompt it is measured with; None: all of them.
    """

    def __init__(self, name: str, file: Path, worker: WorkerProcess, *, max_tokens: int | None = None) -> None:
        self.name, self.file, self.max_tokens = name, file, max_tokens
        self._worker = worker

    def load(self, load: Load) -> Record:
        """Load the model; see MeasuredEngine."""
        return self._worker.ask(
            "load", model=str(self.file), num_threads=load.num_threads, max_context=load.max_context
        )

    def prefill(self, token_ids: Sequence[int]) -> Record:
        """Time a prompt; see MeasuredEngine."""
        time.sleep(SETTLE_SECONDS)
        answer = self._worker.ask("prefill", token_ids=list(token_ids))
        return {"tokens": len(token_ids), "seconds": [answer["seconds"]]}

    def decode(self, token_ids: Sequence[int], new_tokens: int) -> Record:
        """Time single tokens; see MeasuredEngine."""
        time.sleep(SETTLE_SECONDS)
        answer = self._worker.ask("decode", token_ids=list(token_ids), new_tokens=new_tokens)
        return {"tokens": new_tokens, "seconds": answer["seconds"]}

    def memory(self) -> Record:
        """Return the peak; see MeasuredEngine."""
        return self._worker.ask("memory")

    def close(self) -> None:
        """End the worker."""
        self._worker.close()


class OwnEngine(WorkerEngine):
    """This engine, which can do more than the peers are measured with.

    Args:
        folder: the model folder.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "cg_local.bench.worker"]
        super().__init__(OWN_NAME, folder, WorkerProcess(OWN_NAME, command))

    def load(self, load: Load) -> Record:
        """Load the model; see MeasuredEngine."""
        return self._worker.ask(
            "load",
            model=str(self.file),
            num_threads=load.num_threads,
            max_context=load.max_context,
            num_pages=load.num_pages,
        )

    def batch(self, size: int, new_tokens: int, seed: int) -> Record:
        """Time steps in which `size` sequences with different prompts decode one token each."""
        answer = self._worker.ask("batch", size=size, new_tokens=new_tokens, seed=seed)
        return {"tokens": size * new_tokens, "seconds": answer["seconds"]}

    def bytes_per_token(self, depth: int) -> int:
        """Return what one token must read at a depth; see `figures.bytes_per_token`."""
        return int(self._worker.ask("bytes", depth=depth)["bytes"])


def llama_engine(kind: str, file: Path, python: str, max_tokens: int | None) -> WorkerEngine:
    """Return llama.cpp in a worker of an interpreter that has llama-cpp-python.

    Args:
        kind: of quantization: "Q4_0".
        file: the GGUF file.
        python: the interpreter.
        max_tokens: the longest prompt it is measured with; None: all of them.
    """
    name = f"llama.cpp {kind}"
    return WorkerEngine(name, file, llama_worker(python, name), max_tokens=max_tokens)


class LlamaBench:
    """llama.cpp's own benchmark program; it loads the model for every measurement and makes its own tokens.

    Args:
        kind: of quantization: "Q4_0".
        file: the GGUF file.
        program: path of llama-bench.
        max_tokens: the longest prompt it is measured with; None: all of them.
    """

    def __init__(self, kind: str, file: Path, program: str, max_tokens: int | None) -> None:
        self.name, self.file, self.max_tokens = f"llama-bench {kind}", file, max_tokens
        self._program = program
        self._num_threads = 1

    def load(self, load: Load) -> Record:
        """Remember the threads; nothing is loaded before a measurement, and no time of loading is known."""
        self._num_threads = load.num_threads or 1
        return {"seconds": None, "version": {}}

    def prefill(self, token_ids: Sequence[int]) -> Record:
        """Time a prompt of as many tokens."""
        return {"tokens": len(token_ids), "seconds": [self._run(len(token_ids), 0, 0)]}

    def decode(self, token_ids: Sequence[int], new_tokens: int) -> Record:
        """Time single tokens after as many tokens of context; one token (BOS) counts as none."""
        depth = len(token_ids) if len(token_ids) > 1 else 0
        return {"tokens": new_tokens, "seconds": [self._run(0, new_tokens, depth)]}

    def memory(self) -> Record:
        """Nothing is known of its memory."""
        return {}

    def close(self) -> None:
        """Nothing is running between measurements."""

    def _run(self, prompt: int, new: int, depth: int) -> float:
        values = {"-m": self.file, "-p": prompt, "-n": new, "-d": depth, "-t": self._num_threads, "-fa": 1, "-r": 1}
        command = [self._program, *(str(part) for pair in values.items() for part in pair), "-ngl", "0", "-o", "json"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=LLAMA_BENCH_SECONDS,
                check=True,
                env=inherited_environment(),
            )
            return float(json.loads(done.stdout)[0]["avg_ns"]) * 1e-9
        except subprocess.CalledProcessError as cause:
            lines = (cause.stderr or "").strip().splitlines() or ["it said nothing"]
            raise BenchmarkError(f"{self._program}: ended with status {cause.returncode}: {lines[-1]}") from cause
        except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as cause:
            raise BenchmarkError(f"{self._program}: no result of a measurement: {cause}") from cause
