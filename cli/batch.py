"""Files of requests from the command line: the options of a backend, and results on stdout or in a file.

This file owns what `complete --input` and `eval` have in common. It imports JAX when JAX is asked for and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import Status, notice, write_stdout
from cg_local.cli.session import load_model
from cg_local.errors import BackendError

if TYPE_CHECKING:
    from cg_local.config import SamplingParams
    from cg_local.evaluation import Backend
    from cg_local.request_file import Request

Results = Iterator[list[dict[str, object]]]
DEFAULT_BATCH_SIZE = 8
COMPILING = "(XLA compiles a program for each shape)"


class BackendName(str, Enum):
    """Who computes."""

    engine = "engine"
    jax = "jax"


class Dtype(str, Enum):
    """What JAX computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="Who computes: the engine, or JAX (extra jax) on any of its devices.")
]
Mesh = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mesh", metavar="DATAxTENSOR", help="JAX: 2x4 is 2 groups of 4 devices that share each matrix."),
]
DtypeOption = Annotated[Optional[Dtype], typer.Option("--dtype", help="JAX: type of the weights. Default: float32.")]  # noqa: UP045
BatchSize = Annotated[Optional[int], typer.Option("--batch-size", min=1, help="JAX: requests at once. Default: 8.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file of results.")]
Coordinator = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--coordinator", metavar="HOST:PORT", help="JAX in several processes: address of process 0."),
]
NumProcesses = Annotated[Optional[int], typer.Option("--num-processes", min=1, help="How many processes.")]  # noqa: UP045
ProcessId = Annotated[Optional[int], typer.Option("--process-id", min=0, help="This one's number, from 0.")]  # noqa: UP045


@dataclass(frozen=True)
class Computer:
    """The options that say who computes, as given; None where the default holds.

    Attributes:
        model: as `find_model` takes it.
        scheme: see `options.OptionalScheme`.
        backend: who.
        mesh: "DATAxTENSOR".
        dtype: of the weights.
        batch_size: requests at once.
        processes: address of process 0, number of processes, own number.
        threads, kv_dtype: of the engine.
    """

    model: str
    scheme: options.Scheme | None
    backend: BackendName
    mesh: str | None = None
    dtype: Dtype | None = None
    batch_size: int | None = None
    processes: tuple[str | None, int | None, int | None] = (None, None, None)
    threads: int | None = None
    kv_dtype: options.KvDtype | None = None

    def check(self) -> None:
        """Refuse options of the other backend, which would be silently without effect."""
        for_jax = {"--mesh": self.mesh, "--dtype": self.dtype, "--batch-size": self.batch_size}
        for_jax |= dict(zip(("--coordinator", "--num-processes", "--process-id"), self.processes, strict=True))
        for_engine = {"--threads": self.threads, "--kv-dtype": self.kv_dtype}
        is_jax = self.backend == BackendName.jax
        for name, value in (for_engine if is_jax else for_jax).items():
            if value is not None:
                other = "the engine; leave it out" if is_jax else "JAX; add --backend jax"
                raise typer.BadParameter(f"is for {other}", param_hint=name)

    def settings(self) -> dict[str, object]:
        """Return what a result may depend on; the model by its content, wherever it lies.

        Raises:
            ModelFolderError: there is no such model.
        """
        from cg_local.model_store import find_model, model_digest

        dtype = self.dtype.value if self.dtype else None
        kv_dtype = self.kv_dtype.value if self.kv_dtype else None
        scheme = self.scheme.value if self.scheme else None
        model = model_digest(find_model(self.model))
        return {"model": model, "scheme": scheme, "by": self.backend.value, "dtype": dtype, "kv": kv_dtype}

    def open(self, max_context: int | None) -> Backend:
        """Load the model.

        Args:
            max_context: tokens of prompt and answer together; None: as the model was trained.
        """
        if self.backend == BackendName.jax:
            return self._open_jax(max_context)
        from cg_local.evaluation import EngineBackend

        return EngineBackend(load_model(self.model, self.scheme, max_context, self.threads, self.kv_dtype, True))

    def _open_jax(self, max_context: int | None) -> Backend:
        require_jax()
        from cg_local.jax_backend.backend import JaxBackend, compile_model, open_model
        from cg_local.jax_backend.mesh import MeshShape, join_processes
        from cg_local.models import infill_order

        mesh = MeshShape.parse(self.mesh or "1x1")
        join_processes(*self.processes)
        status = Status()
        with status.waiting(f"loading {self.model} ...", COMPILING):
            opened = open_model(self.model, self.scheme.value if self.scheme else None, status.progress(self.model))
            tokenizer = opened.tokenizer()
            dtype = (self.dtype or Dtype.float32).value
            model = compile_model(opened, mesh=mesh, dtype=dtype, vocab_size=tokenizer.vocab_size)
        for text in tokenizer.notices:
            notice(text)
        batch_size = self.batch_size or DEFAULT_BATCH_SIZE
        return JaxBackend(model, tokenizer, batch_size, max_context, infill_order(opened.name))


def require_jax() -> None:
    """Import JAX.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import jax  # noqa: F401
    except ImportError as error:
        raise BackendError("JAX is not installed; run `pip install 'cg-local[jax]'`") from error


def run_requests(
    source: Path,
    output: Path | None,
    computer: Computer,
    params: SamplingParams,
    *,
    overwrite: bool,
    max_context: int | None,
    is_evaluation: bool,
) -> list[dict[str, object]]:
    """Answer or evaluate a file of requests.

    Args:
        source: of the requests.
        output: where the results go; None: stdout for answers, nowhere for an evaluation.
        computer: who computes.
        params: how answers are sampled.
        overwrite: replace a file of results.
        max_context: tokens of prompt and answer together.
        is_evaluation: evaluate.

    Returns:
        All results, in the order of the requests; in a process that is not the first one, those of this run.

    Raises:
        BatchError: a line that is no request, or the results cannot be written.
    """
    from cg_local.request_file import ResultFile, fingerprint, read_requests

    computer.check()
    requests = read_requests(source, is_evaluation=is_evaluation)
    if output is None:
        found = _compute(computer.open(max_context), requests, params, is_evaluation)
        is_shown = not is_evaluation and is_first(computer)
        return _collect(found, len(requests), 0, _print if is_shown else None)
    settings = {**computer.settings(), "params": params, "context": max_context, "eval": is_evaluation}
    results = ResultFile(output, fingerprint(source, settings), overwrite=overwrite)
    backend = computer.open(max_context)
    if not is_first(computer):
        skipped = _agreed(computer, 0)
        found = _compute(backend, requests[skipped:], params, is_evaluation)
        return _collect(found, len(requests), skipped, None)
    with results:
        done = _agreed(computer, results.num_done)
        if done:
            notice(f"{output}: {done} of {len(requests)} results are there from a run before; going on behind them")
        _collect(_compute(backend, requests[done:], params, is_evaluation), len(requests), done, results.write)
        documents = results.read()
        results.commit()
    return documents


def _compute(backend: Backend, requests: Sequence[Request], params: SamplingParams, is_evaluation: bool) -> Results:
    from cg_local.evaluation import answer_all, evaluate_all

    return (evaluate_all if is_evaluation else answer_all)(backend, requests, params)


def _collect(
    found: Results, total: int, done: int, write: Callable[[list[dict[str, object]]], None] | None
) -> list[dict[str, object]]:
    status, documents = Status(), list[dict[str, object]]()
    try:
        status.show(f"{done} of {total} requests done")
        for batch in found:
            documents += batch
            if write is not None:
                write(batch)
            status.show(f"{done + len(documents)} of {total} requests done")
    finally:
        status.clear()
    return documents


def _print(batch: list[dict[str, object]]) -> None:
    from cg_local.request_file import json_line

    write_stdout("".join(map(json_line, batch)))


def is_first(computer: Computer) -> bool:
    """Whether this process is the one that writes; of the engine there is but one."""
    if computer.backend != BackendName.jax:
        return True
    from cg_local.jax_backend.mesh import is_first_process

    return is_first_process()


def _agreed(computer: Computer, number: int) -> int:
    if computer.backend != BackendName.jax:
        return number
    from cg_local.jax_backend.mesh import number_of_first_process

    return number_of_first_process(number)
