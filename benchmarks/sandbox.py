"""Run untrusted Python programs in child processes and tell whether they ran to their end.

This file owns the walls around a program: a fresh interpreter in an empty folder, limits, namespaces, the clock, and
the killing of whatever is left. `sandbox_child` is the inside. It does not know what the programs test. Invariant:
`Sandbox.run` returns within the time limits, whatever the program does, and leaves no process and no file behind.

The walls, from the strongest that this machine allows (`Sandbox.isolation` says which are there):
network: none, in a namespace of its own;  processes: a PID namespace, and no right to start any;
files: nothing can be written outside the empty folder (Landlock);  memory, CPU time, file size: limits.

Sources: openai/human-eval, human_eval/execution.py (3 seconds, an empty namespace, standard streams swallowed).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 3.0
# A fresh interpreter takes 0.03 s here; a busy machine is given time, which does not count as the program's.
START_SECONDS = 20.0
END_SECONDS = 2.0
MAX_REPORT_BYTES = 4096
NOBODY = "65534"  # uid and gid of nobody/nogroup on Linux distributions

LIMITS: Mapping[str, int] = {
    "RLIMIT_CPU": 4,  # seconds; the wall clock stops a program before
    "RLIMIT_AS": 1 << 30,
    "RLIMIT_DATA": 1 << 30,
    "RLIMIT_FSIZE": 1 << 20,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_CORE": 0,
    "RLIMIT_NPROC": 0,
}

_USER_NAMESPACE = ("unshare", "--user", "--map-root-user")
_NAMESPACES = ("--net", "--pid", "--ipc", "--fork", "--kill-child")
# Root is not bound by RLIMIT_NPROC, so programs run as nobody, who may still read an interpreter in root's folders.
_KEPT = "-all,+dac_read_search"
_AS_NOBODY = (
    *("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps", _KEPT),
    *("--ambient-caps", _KEPT, "--bounding-set", _KEPT),
)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: it ran to its last statement.
        reason: "passed", the name of the exception that ended it, "exited" (it or the system ended the process),
            "timeout", or "not started".
        seconds: wall-clock time from its first statement on.
    """

    passed: bool
    reason: str
    seconds: float


class Sandbox:
    """A way to run programs on this machine, chosen by trying.

    Args:
        timeout_seconds: wall-clock time of a program.

    Raises:
        RuntimeError: not even a plain child process runs a program here.
    """

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.timeout_seconds = timeout_seconds
        self._child = Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")
        for name, command in _ways():
            self._command = command
            report, outcome = self._run("pass")
            if outcome.passed:
                self.isolation = _describe(name, report)
                return
        raise RuntimeError(f"the sandbox cannot run a program with {sys.executable}; try another interpreter")

    def run(self, program: str) -> Outcome:
        """Run one program, at most `timeout_seconds` long."""
        return self._run(program)[1]

    def run_all(self, programs: Iterable[str], num_workers: int = 2) -> Iterator[Outcome]:
        """Run programs side by side; outcomes come in the programs' order."""
        with ThreadPoolExecutor(num_workers) as pool:
            yield from pool.map(self.run, programs)

    def _run(self, program: str) -> tuple[dict[str, object], Outcome]:
        token = secrets.token_hex(16)
        folder = tempfile.mkdtemp(prefix="cg-local-sandbox-")
        os.chmod(folder, 0o777)
        job = json.dumps({"program": program, "folder": folder, "token": token, "limits": LIMITS})
        read_end, write_end = os.pipe()
        try:
            process = self._start(write_end)
        except OSError:
            os.close(read_end)
            return {}, Outcome(False, "not started", 0.0)
        finally:
            os.close(write_end)
        try:
            return self._watch(process, read_end, job, token)
        finally:
            _kill(process)
            os.close(read_end)
            with contextlib.suppress(OSError, RecursionError):
                shutil.rmtree(folder)

    def _start(self, write_end: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, sys.executable, "-I", "-S", "-c", self._child, str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write_end,),
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )

    def _watch(
        self, process: subprocess.Popen[bytes], read_end: int, job: str, token: str
    ) -> tuple[dict[str, object], Outcome]:
        """Hand over the job, wait for "ready" and then for the verdict."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # a child that died early is told by its silence
            process.stdin.write(job.encode())
        with contextlib.suppress(OSError):
            process.stdin.close()
        lines = _Lines(read_end)
        ready = lines.next(time.monotonic() + START_SECONDS)
        if ready is None:
            return {}, Outcome(False, "not started", 0.0)
        started = time.monotonic()
        verdict = lines.next(started + self.timeout_seconds)
        seconds = time.monotonic() - started
        if verdict is None:
            return ready, Outcome(False, "exited" if lines.is_closed else "timeout", seconds)
        if verdict.get("token") == token:
            return ready, Outcome(True, "passed", seconds)
        return ready, Outcome(False, str(verdict.get("reason", "exited"))[:64], seconds)


class _Lines:
    """JSON lines from a pipe whose writer is not trusted: bounded in size and time."""

    def __init__(self, read_end: int) -> None:
        self._read_end, self._buffer, self._num_bytes = read_end, b"", 0
        self.is_closed = False

    def next(self, deadline: float) -> dict[str, object] | None:
        """Return the next line's object; None at the deadline, at the end or for anything that is not an object."""
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._read_end], [], [], remaining)[0]:
                return None
            data = os.read(self._read_end, MAX_REPORT_BYTES)
            self._num_bytes += len(data)
            if not data or self._num_bytes > MAX_REPORT_BYTES:
                self.is_closed = True
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        self.is_closed = not isinstance(value, dict)
        return value if isinstance(value, dict) else None


def _ways() -> list[tuple[str, tuple[str, ...]]]:
    """Return (name, command prefix) of the ways to start a child, the strongest walls first."""
    in_user_namespace = ("namespaces", (*_USER_NAMESPACE, *_NAMESPACES))
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return [in_user_namespace, ("plain", ())]
    as_nobody = ("namespaces", ("unshare", *_NAMESPACES, *_AS_NOBODY))
    return [as_nobody, ("plain", _AS_NOBODY), in_user_namespace, ("plain", ())]


def _describe(name: str, report: Mapping[str, object]) -> dict[str, str]:
    """Say which walls are there; goes into every result."""
    own = name == "namespaces"
    landlock = report.get("landlock")
    has_no_tcp = isinstance(landlock, int) and landlock >= 4
    bound_by_limits = report.get("uid") != 0 or os.geteuid() != 0
    return {
        "network": "none (namespace)" if own else "no TCP (Landlock)" if has_no_tcp else "NOT separated",
        "processes": ("own PID namespace" if own else "process group")
        + (", none can be started" if bound_by_limits else ", can start others"),
        "files": f"writable in its empty folder only (Landlock {landlock})" if landlock else "NOT protected",
        "limits": f"{LIMITS['RLIMIT_AS'] >> 20} MiB of memory, {LIMITS['RLIMIT_CPU']} s of CPU, 1 MiB a file",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and all it may have started.

    The processes behind `unshare` are killed by id first: a program can leave its process group, but the first process
    of a PID namespace takes all others of it along. `unshare` then ends by itself, when they are really gone.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            process.wait(END_SECONDS)
    # Reaped here, its number may already be another process's; not reaped, it cannot be.
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
