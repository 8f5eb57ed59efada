"""`cg-local complete`: a text from a file or from standard input, continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest

import cg_local
from cg_local import SamplingParams

LIVELY = ("--temperature", "3", "--seed", "11", "--max-tokens", "24")
TEXT = "def add(a, b):\n    return "


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    params = SamplingParams(max_tokens=24, temperature=3.0, seed=11)
    return cg_local.load(folder).complete(TEXT, params=params).text


def test_standard_input_is_continued(tmp_path: Path, folder: Path, expected: str) -> None:
    done = command_line.run("complete", "--model", str(folder), *LIVELY, home=tmp_path, stdin=TEXT.encode())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, expected, b"")


def test_document_of_a_file_has_the_same_text(tmp_path: Path, folder: Path, expected: str) -> None:
    tmp_path.joinpath("a.py").write_text(TEXT)
    done = command_line.run("complete", "a.py", "--json", "--model", str(folder), *LIVELY, home=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert (document["text"], document["file"], document["scheme"]) == (expected, "a.py", "q4")
    assert list(document) == [
        *("file", "model", "scheme", "text", "stop_reason", "mean_logprob", "num_tokens"),
        *("prompt_tokens", "cached_tokens", "truncated", "timings"),
    ]


def test_empty_input_is_one_line(tmp_path: Path) -> None:
    done = command_line.run("complete", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cg-local: error: standard input: empty")
