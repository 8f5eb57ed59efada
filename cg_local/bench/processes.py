"""Whole processes: a fill from nothing compiled, a fill with everything cached, and neighbours that keep cores busy.

This file owns starting and ending them. Invariant: no process outlives the call or context that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cg_local.errors import BenchmarkError

NEW_TOKENS = 32
SETTLE_SECONDS = 0.3
FILL_SECONDS, EDITS_SECONDS = 600, 3600
# A gap in which nano writes as long as it may; how many tokens it wrote is part of the record.
SOURCE = """class Point:
    def __init__(self, a, b):
        self.a = a

    def run(self, x):


def make():
    return 1
"""
GAP = "6:1"
# It ends by itself when the process that started it is gone.
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6):\n        pass\n"


@contextmanager
def busy_cores(num_cores: int) -> Iterator[list[int]]:
    """Keep so many cores busy with plain Python loops; gives the numbers of the processes."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(num_cores):
            processes.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN], start_new_session=True))
        time.sleep(SETTLE_SECONDS)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def prompt_lookup(model: Path, num_threads: int | None) -> dict[str, Any]:
    """Time edits of a text of the prompt without and with guessed tokens; see `prompt_lookup.measure_edits`.

    Args:
        model: the model folder.
        num_threads: of the kernels; None: what the engine chooses.

    Raises:
        BenchmarkError: the process failed.
    """
    request = json.dumps({"model": str(model), "num_threads": num_threads})
    command = [sys.executable, "-m", "cg_local.bench.prompt_lookup", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=EDITS_SECONDS)
    except subprocess.CalledProcessError as cause:
        lines = cause.stderr.strip().splitlines() or ["it said nothing"]
        raise BenchmarkError(f"prompt lookup ended with status {cause.returncode}: {lines[-1]}") from cause
    except subprocess.TimeoutExpired as cause:
        raise BenchmarkError(f"prompt lookup did not end within {EDITS_SECONDS} seconds") from cause
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class FillProcess:
    """`cg-local fill` with nano as a process of its own; a context manager that keeps its caches apart.

    Args:
        num_threads: of the kernels; None: what the engine chooses.
    """

    def __init__(self, num_threads: int | None) -> None:
        self._num_threads = num_threads
        self._temporary = TemporaryDirectory(prefix="cg-local-bench-", ignore_cleanup_errors=True)
        self._folder = Path(self._temporary.name)
        self._num_cold = 0
        self._folder.joinpath("point.py").write_text(SOURCE, encoding="utf-8")

    def __enter__(self) -> FillProcess:
        """Return this, with nano quantized and nothing compiled."""
        from cg_local.model_store import find_model, ready_folder

        environment = os.environ.get("CG_LOCAL_CACHE")
        os.environ["CG_LOCAL_CACHE"] = str(self._folder / "cache")
        try:
            ready_folder(find_model("nano"))
        finally:
            if environment is None:
                del os.environ["CG_LOCAL_CACHE"]
            else:
                os.environ["CG_LOCAL_CACHE"] = environment
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the caches."""
        self._temporary.cleanup()

    def cold(self) -> dict[str, Any]:
        """Time a whole process that finds nothing compiled; the next `warm` finds what it compiled."""
        self._num_cold += 1
        return self._run()

    def warm(self) -> dict[str, Any]:
        """Time a whole process that finds everything compiled."""
        return self._run()

    def _run(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "cg_local.cli", "fill", f"{self._folder / 'point.py'}:{GAP}", "--json"]
        command += ["--mode", "block", "--max-tokens", str(NEW_TOKENS)]
        command += ["--threads", str(self._num_threads)] if self._num_threads is not None else []
        caches = {"CG_LOCAL_CACHE": "cache", "NUMBA_CACHE_DIR": f"compiled-{self._num_cold}"}
        environment = {**os.environ, **{name: str(self._folder / folder) for name, folder in caches.items()}}
        # An installed program has its modules' bytecode; a shell that forbids it adds a tenth of a second to each run.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, timeout=FILL_SECONDS
            )
        except subprocess.CalledProcessError as cause:
            raise BenchmarkError(
                f"cg-local fill ended with status {cause.returncode}: {cause.stderr[-300:]}"
            ) from cause
        except subprocess.TimeoutExpired as cause:
            raise BenchmarkError(f"cg-local fill did not end within {FILL_SECONDS} seconds") from cause
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "num_tokens": json.loads(done.stdout)["candidates"][0]["num_tokens"]}
