"""`cg-local fill` as a person runs it: the answer, the document, bad input, pipes and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import command_line
import pytest
from command_line import Inside

import cg_local
from cg_local import SamplingParams
from cg_local.runtime import LocalModel

SOURCE = "def f(x):\n    y = 1\n    return y\n"
LIVELY = ("--temperature", "3", "--seed", "11", "--max-tokens", "24")
PARAMS = SamplingParams(max_tokens=24, temperature=3.0, seed=11)


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return cg_local.load(folder)


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.joinpath("a.py").write_text(SOURCE)
    return tmp_path


def test_answer_is_the_models_infill_and_nothing_else(home: Path, folder: Path, model: LocalModel) -> None:
    done = command_line.run("fill", "a.py:2", "--model", str(folder), *LIVELY, home=home)
    prefix, suffix = SOURCE[: SOURCE.index("\n    return")], "\n    return y\n"
    expected = model.infill(prefix, suffix, "a.py", params=PARAMS).text
    assert (done.returncode, done.stdout.decode(), b"error" in done.stderr) == (0, expected, False)
    assert home.joinpath("a.py").read_text() == SOURCE


def test_what_the_model_wrote_is_shown_on_request(home: Path, folder: Path, model: LocalModel) -> None:
    prefix, suffix = SOURCE[: SOURCE.index("\n    return")], "\n    return y\n"
    tried = (replace(PARAMS, seed=seed) for seed in range(200))
    answers = ((params.seed, model.infill(prefix, suffix, "a.py", mode="line", params=params)) for params in tried)
    seed, expected = next((seed, answer) for seed, answer in answers if answer.untrimmed != answer.text)
    assert expected.untrimmed.startswith(expected.text)
    options = ("a.py:2", "--model", str(folder), "--mode", "line", "--untrimmed", *LIVELY, "--seed", str(seed))
    assert command_line.run("fill", *options, home=home).stdout.decode() == expected.untrimmed
    (candidate,) = json.loads(command_line.run("fill", *options, "--json", home=home).stdout)["candidates"]
    assert (candidate["text"], candidate["untrimmed"]) == (expected.text, expected.untrimmed)


def test_empty_answer_is_said_also_to_a_pipe(home: Path, folder: Path, model: LocalModel, inside: Inside) -> None:
    home.joinpath("b.py").write_text(SOURCE)
    tried = (replace(PARAMS, seed=seed) for seed in range(500))
    prefix, suffix = SOURCE[: SOURCE.index("\n    return")], "\n    return y\n"
    answers = ((params.seed, model.infill(prefix, suffix, "a.py", mode="line", params=params)) for params in tried)
    seed, found = next((seed, answer) for seed, answer in answers if answer.untrimmed and not answer.text)
    options = ("--model", str(folder), "--mode", "line", *LIVELY, "--seed", str(seed))
    told = "cg-local: a.py:2:10: the answer is empty; --untrimmed shows what was cut off\n"
    for more in ((), ("--explain",), ("--min-prob", "0.0001")):
        done = inside.run("fill", "a.py:2", *options, *more, home=home)
        assert (done.returncode, done.stderr.decode()) == (0, told), more
    done = inside.run("fill", "b.py:1", "a.py:2", *options, home=home)
    assert done.stdout.decode().endswith("==> a.py:2:10 <==\n\n")
    assert done.stderr.decode().endswith(told)
    for option, shown in (("--untrimmed", found.untrimmed), ("--json", None)):
        done = inside.run("fill", "a.py:2", *options, option, home=home)
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown is None or done.stdout.decode() == shown


def test_document_has_the_agreed_members(home: Path, folder: Path, model: LocalModel) -> None:
    done = command_line.run("fill", "a.py:2:9", "--json", "--model", str(folder), *LIVELY, home=home)
    assert done.returncode == 0
    assert done.stdout.endswith(b"}\n")
    assert done.stdout.count(b"\n") == 1
    document = json.loads(done.stdout)
    expected = model.infill("def f(x):\n    y = ", "1\n    return y\n", "a.py", params=PARAMS)
    assert done.stdout == (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    timings = document.pop("timings")
    assert list(timings) == [
        *("load_ms", "prefill_ms", "decode_ms", "prefill_tokens_per_second", "decode_tokens_per_second")
    ]
    assert expected.mean_logprob is not None
    assert document == {
        "target": "a.py:2:9",
        "place": "a.py:2:9",
        "file": "a.py",
        "line": 2,
        "col": 9,
        "model": str(folder),
        "scheme": "q4",
        "candidates": [
            {
                "text": expected.text,
                "stop_reason": expected.stop_reason,
                "mean_logprob": round(expected.mean_logprob, 4),
                "num_tokens": expected.num_tokens,
                "trimmed": list(expected.trimmed),
            }
        ],
        "prompt_tokens": expected.prompt_tokens,
        "cached_tokens": 0,
        "truncated": False,
        "speculation": {"drafted": expected.drafted_tokens, "accepted": expected.accepted_tokens},
    }


def test_standard_input_and_a_file_with_crlf_give_the_same_text(home: Path, folder: Path, model: LocalModel) -> None:
    """The model sees the same prompt; the answer gets the line endings of what it goes into."""
    prefix, suffix = "def f(x):\n", "\n    return y\n"
    expected = model.infill(prefix, suffix, "a.py", mode="block", params=PARAMS).text
    data = b"\xef\xbb\xbf" + SOURCE.replace("\n", "\r\n").encode()
    options = ("--mode", "block", "--model", str(folder), *LIVELY)
    done = command_line.run("fill", "-:2-2", "--path", "a.py", *options, home=home, stdin=data)
    assert (done.returncode, done.stdout.decode()) == (0, expected.replace("\n", "\r\n"))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_cut_prompt_is_said_in_the_document_and_to_a_person(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    home.joinpath("long.py").write_text("value = 1\n" * 100_000)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "dumb")
    arguments = ("fill", "long.py:50000", "--json", "--context-tokens", "64", "--model", str(folder), *LIVELY)
    done = inside.run(*arguments, home=home)
    assert done.returncode == 0
    assert json.loads(done.stdout)["truncated"] is True
    assert done.stderr.startswith(b"cg-local: prompt cut to 64 tokens: prefix keeps ") == is_terminal
    assert done.stderr.count(b"\n") == is_terminal


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (None, "b.py:1", "b.py: no such file"),
        (b"", "b.py:1", "b.py: empty"),
        (b"a\0b", "b.py:1", "b.py: a binary file"),
        (b"caf\xe9\n", "b.py:1", "b.py: not UTF-8: byte 0xe9 at line 1"),
        (b"\xff\xfea\0", "b.py:1", "b.py: encoded as UTF-16, UTF-8 is needed; convert it: iconv -f UTF-16 -t UTF-8"),
        (b"a\n", "b.py:7", "b.py: line 7 is out of range; the file has 1 line"),
        (b"a\n", "b.py:0", "b.py: line 0 is out of range"),
        (b"abc\n", "b.py:1:9", "b.py: column 9 is out of range; line 1 has 3 characters, so its columns are 1 to 4"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_file_alone(
    inside: Inside, home: Path, data: bytes | None, target: str, message: str
) -> None:
    path = home / "b.py"
    if data is not None:
        path.write_bytes(data)
    done = inside.run("fill", target, home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"cg-local: error: {message}")
    assert done.stderr.count(b"\n") == 1
    assert (path.read_bytes() if path.exists() else None) == data


def test_bad_model_is_one_line(inside: Inside, home: Path, toy_checkpoint: Callable[[str], Path]) -> None:
    for name, message in (("none", "none: no such model or folder; known names: nano"), (".", ": not a model folder")):
        done = inside.run("fill", "a.py:2", "--model", name, home=home)
        assert (done.returncode, done.stdout) == (1, b"")
        assert message in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
    done = inside.run("fill", "a.py:2", "--model", str(toy_checkpoint("mqa")), home=home)
    assert b"run `cg-local quantize" in done.stderr


def test_two_runs_at_once_answer_the_same(home: Path, folder: Path) -> None:
    command = [*command_line.COMMAND, "fill", "a.py:2", "--model", str(folder), *LIVELY]
    runs = [
        subprocess.Popen(command, cwd=home, env=command_line.environment(home), stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert answers[0] == answers[1]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
class TestTerminal:
    """A pseudo-terminal as stdout."""

    def start(self, home: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
        import pty
        import termios

        ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # the terminal's own translation of line ends
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        process = subprocess.Popen(
            [*command_line.COMMAND, *arguments],
            cwd=home,
            env=command_line.environment(home),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        return process, ours

    def read_all(self, descriptor: int) -> bytes:
        data = b""
        while True:
            try:
                block = os.read(descriptor, 4096)
            except OSError:  # the other side is closed
                block = b""
            if not block:
                os.close(descriptor)
                return data
            data += block

    def errors_of(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stderr is not None
        with process.stderr as stream:
            return stream.read()

    def test_streamed_answer_has_the_bytes_of_the_piped_one(self, home: Path, folder: Path) -> None:
        arguments = ("fill", "a.py:2", "--model", str(folder), *LIVELY)
        process, terminal = self.start(home, *arguments)
        shown = self.read_all(terminal)
        assert process.wait(240) == 0
        piped = command_line.run(*arguments, home=home)
        assert self.errors_of(process) == piped.stderr
        assert shown == piped.stdout + b"\n"

    def test_interrupt_keeps_what_was_written_and_exits_with_130(self, home: Path, folder: Path) -> None:
        """Greedy toys repeat themselves for ever, so there is time to interrupt."""
        process, terminal = self.start(
            home, "complete", "a.py", "--model", str(folder), "--max-tokens", "900", "--context-tokens", "100"
        )
        first = os.read(terminal, 1)
        process.send_signal(signal.SIGINT)
        shown = first + self.read_all(terminal)
        assert process.wait(240) == 130
        assert shown.endswith(b"\n")
        assert self.errors_of(process) == b""
