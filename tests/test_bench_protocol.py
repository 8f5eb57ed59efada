"""Asking workers: answers, errors, last words, and that none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cg_local.bench.protocol import WorkerProcess
from cg_local.errors import BenchmarkError

# Answers what it is asked with what it was given; some requests make it fail.
FAKE = """
import json, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    if request["do"] == "sleep":
        time.sleep(60)
    answer = {"babble": "[]", "garble": "{"}.get(request["do"], json.dumps(request))
    if request["do"] == "fail":
        answer = json.dumps({"error": "no such thing"})
    print(answer, flush=True)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "fake.py").write_text(FAKE)
    return [sys.executable, str(tmp_path / "fake.py")]


def test_answers_come_in_the_order_of_requests(command: list[str]) -> None:
    with WorkerProcess("fake", command) as worker:
        answers = [worker.ask("echo", token_ids=[number]) for number in range(3)]
    assert answers == [{"do": "echo", "token_ids": [number]} for number in range(3)]


def test_variables_reach_the_worker(tmp_path: Path) -> None:
    code = "import os, json; input(); print(json.dumps({'found': os.environ['FRUIT']}))"
    with WorkerProcess("fake", [sys.executable, "-c", code], {"FRUIT": "plum"}) as worker:
        assert worker.ask("echo") == {"found": "plum"}


@pytest.mark.parametrize(
    ("request_name", "message"),
    [
        ("fail", "fake: fail: no such thing"),
        ("die", "fake: ended with status 3 when asked to die: out of luck"),
        ("garble", "no JSON"),
        ("babble", "no JSON object"),
    ],
)
def test_failures_are_one_line_with_the_reason(command: list[str], request_name: str, message: str) -> None:
    with WorkerProcess("fake", command) as worker, pytest.raises(BenchmarkError, match=message):
        worker.ask(request_name)


def test_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be started"):
        WorkerProcess("fake", [str(tmp_path / "nothing")])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_worker_that_is_busy_when_interrupted_is_ended_at_once(command: list[str]) -> None:
    worker = WorkerProcess("fake", command)
    worker.ask("echo")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        worker.ask("sleep")
    timer.join()
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 3
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process_id, 0)
