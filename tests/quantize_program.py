"""A process whose children quantize and are killed, and which then looks at what became of it.

    python quantize_program.py kill-each SOURCE FOLDER STRIDE   killed before the first operation on the file system,
                                                                number 1 + STRIDE, ... until one comes to its end
    python quantize_program.py kill-random SOURCE FOLDER TIMES  killed at random moments, again and again

What a killed child left is continued, in the end to the finished model, which has to be the same bytes as that of a
child that was never disturbed. Children have one to three threads by turns. SOURCE is a toy; with CG_LOCAL_SECONDS,
the longest time before a kill, it may be a model of any size.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cg_local.quant import encoder, quantize, slabs

OPERATIONS = ("write", "fsync", "fdatasync", "mkdir", "rename", "replace", "ftruncate", "unlink", "rmdir")


# What cuts a toy into 27 slabs of several blocks each, and learns its codebooks quickly.
OF_A_TOY = ((slabs, "SLAB_BYTES", 128 << 10), (slabs, "MAX_BLOCK_BYTES", 32 << 10), (encoder, "SAMPLE_GROUPS", 256))


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def spawn(source: Path, folder: Path, num_threads: int, before: Callable[[], None] = lambda: None) -> int:
    """Start a child that quantizes; returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            before()
            quantize(source, folder, "q4", num_threads=num_threads)
        finally:
            os._exit(0 if folder.is_dir() else 1)
    return child


def was_killed(child: int) -> bool:
    """Wait for a child; whether it was killed. One that is neither killed nor done is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def dying_at(number: int) -> None:
    """Let this process be killed before one of its operations on the file system."""
    count = 0

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    for name in OPERATIONS:
        if hasattr(os, name):
            setattr(os, name, counting(getattr(os, name)))


def kill_each(source: Path, folder: Path, stride: int, expected: dict[str, str]) -> None:
    """Kill at every `stride`-th operation, and finish what is left."""
    number, is_killed = 1, True
    while is_killed:
        is_killed = was_killed(spawn(source, folder, 1 + number % 3, lambda at=number: dying_at(at)))  # type: ignore[misc]
        if not folder.is_dir():
            assert not was_killed(spawn(source, folder, 2))
        assert digests(folder) == expected, number
        shutil.rmtree(folder)
        shutil.rmtree(folder.with_name(f".{folder.name}.partial"), ignore_errors=True)
        print("same" if is_killed else "undisturbed", flush=True)
        number += stride


def kill_random(source: Path, folder: Path, times: int, expected: dict[str, str], longest_seconds: float) -> None:
    """Kill `times` children; whenever one comes to its end first, the next begins with nothing."""
    moments, killed, finished = random.Random(times), 0, 0
    while killed < times or not finished:
        started = time.perf_counter()
        child = spawn(source, folder, 1 + killed % 3)
        if killed < times:
            time.sleep(moments.uniform(0, longest_seconds))
            os.kill(child, signal.SIGKILL)
        if was_killed(child):
            killed += 1
            print(f"killed after {time.perf_counter() - started:.2f} s", flush=True)
            continue
        assert digests(folder) == expected
        finished += 1
        print("same", flush=True)
        shutil.rmtree(folder)


def main() -> None:
    """Do what the arguments say."""
    action, source, folder, number = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    longest_seconds = os.environ.get("CG_LOCAL_SECONDS")
    if longest_seconds is None:
        for module, name, value in OF_A_TOY:
            setattr(module, name, value)
    reference = folder.with_name(f"{folder.name}-undisturbed")
    started = time.perf_counter()
    quantize(source, reference, "q4", is_resumable=False)
    seconds = float(longest_seconds or time.perf_counter() - started)
    if action == "kill-each":
        kill_each(source, folder, number, digests(reference))
    else:
        kill_random(source, folder, number, digests(reference), seconds)
    print("all the same")


if __name__ == "__main__":
    main()
