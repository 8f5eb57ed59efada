"""The sandbox: only a program that ran to its end has passed, and no program does harm."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the sandbox needs POSIX")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(timeout_seconds=1.0)


def separated(sandbox: Sandbox, wall: str) -> None:
    """Skip where this machine cannot build a wall; the result of a benchmark says so too."""
    if "NOT" in sandbox.isolation[wall] or "can start others" in sandbox.isolation[wall]:
        pytest.skip(f"{wall}: {sandbox.isolation[wall]}")


def test_program_that_ends_has_passed(sandbox: Sandbox) -> None:
    assert sandbox.run("import math, collections\nassert math.sqrt(4) == 2").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os\nos._exit(0)", "exited"),
        ("import ctypes\nctypes.string_at(0)", "exited"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("x = (", "SyntaxError"),
        ("x = '\0'", "SyntaxError"),
    ],
)
def test_program_that_ends_early_has_not_passed(sandbox: Sandbox, program: str, reason: str) -> None:
    outcome = sandbox.run(program)

    assert not outcome.passed
    # Python before 3.11.4 calls a NUL in source text a ValueError.
    assert outcome.reason == reason or (reason, outcome.reason) == ("SyntaxError", "ValueError")


def test_program_without_end_is_stopped_in_time(sandbox: Sandbox) -> None:
    started = time.monotonic()

    assert sandbox.run("while True:\n    pass").reason == "timeout"
    assert sandbox.run("import time\ntime.sleep(100)").reason == "timeout"
    assert time.monotonic() - started < 15


def test_forged_verdict_does_not_pass(sandbox: Sandbox) -> None:
    forged = '{"state": "passed", "token": "0123456789abcdef0123456789abcdef"}'
    program = f"""
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{forged}\\n')
    except OSError:
        pass
"""

    assert not sandbox.run(program).passed


def test_flood_of_output_does_not_reach_the_runner(sandbox: Sandbox) -> None:
    program = "import os\nfor descriptor in range(1, 64):\n    try:\n        os.write(descriptor, b'x' * 10**6)\n"
    program += "    except OSError:\n        pass"

    assert not sandbox.run(program).passed


def test_memory_is_limited(sandbox: Sandbox) -> None:
    assert sandbox.run("x = bytearray(4 << 30)").reason == "MemoryError"


def test_large_files_are_refused(sandbox: Sandbox) -> None:
    assert sandbox.run("open('x', 'wb').write(bytes(1 << 21))").reason == "OSError"
    assert sandbox.run("open('x', 'wb').write(b'small')").passed


def test_no_process_can_be_started(sandbox: Sandbox) -> None:
    separated(sandbox, "processes")

    assert sandbox.run("import os\nwhile True:\n    os.fork()").reason == "BlockingIOError"
    assert not sandbox.run("import subprocess\nsubprocess.run(['true'])").passed
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))"
    assert sandbox.run(raised).reason in ("ValueError", "PermissionError")


def test_program_that_leaves_its_group_is_killed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    separated(sandbox, "processes")
    mark = f"mark-{time.monotonic_ns()}"
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":" + mark)
    program = """
import os
if os.getpid() != os.getsid(0):
    os.setsid()
while True:
    pass
"""
    outcome = sandbox.run(program)
    is_running = [path for path in Path("/proc").glob("[0-9]*/environ") if _mentions(path, mark.encode())]

    assert outcome.reason == "timeout"
    assert is_running == []


def _mentions(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


def test_files_outside_stay_as_they_are(sandbox: Sandbox, tmp_path: Path) -> None:
    separated(sandbox, "files")
    kept = tmp_path / "kept"
    kept.write_text("precious")
    kept.chmod(0o666)
    tmp_path.chmod(0o777)

    for program in (
        f"open({str(kept)!r}, 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, {str(kept) + 'x'!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.mkdir({str(tmp_path / 'new')!r})",
        "import os\nos.execv('/bin/true', ['true'])",
    ):
        assert sandbox.run(program).reason == "PermissionError", program
    assert kept.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [kept]


def test_network_cannot_be_reached(sandbox: Sandbox) -> None:
    separated(sandbox, "network")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 0.5)")
    # Landlock forbids it; without it, the namespace has no such server.
    assert outcome.reason in ("PermissionError", "OSError", "ConnectionRefusedError")


def test_environment_is_not_handed_over(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_USER", "1")

    assert sandbox.run("import os\nassert 'SECRET_OF_THE_USER' not in os.environ").passed


def test_outcomes_come_in_order(sandbox: Sandbox) -> None:
    programs = [f"assert {number} % 2 == 0" for number in range(6)]

    assert [outcome.passed for outcome in sandbox.run_all(programs)] == [True, False] * 3
