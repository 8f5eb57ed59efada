"""`cg-local complete`: a text from a file or from standard input, continued."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest

import cg_local
from cg_local import SamplingParams
from cg_local.cli.session import read_text
from cg_local.errors import SourceFileError

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
        *("prompt_tokens", "cached_tokens", "truncated", "timings", "speculation"),
    ]


def test_empty_input_is_one_line(tmp_path: Path) -> None:
    done = command_line.run("complete", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cg-local: error: standard input: empty")


def test_input_in_another_encoding_says_how_to_convert_a_file(tmp_path: Path) -> None:
    done = command_line.run("complete", home=tmp_path, stdin=b"caf\xe9\n")
    assert done.returncode == 1
    assert done.stderr.decode().endswith("convert it: iconv -f CP1252 -t UTF-8 FILE > converted\n")


def test_closed_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceFileError, match="standard input: closed"):
        read_text("-")


def test_endless_standard_input_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cg_local.cli.session.MAX_SOURCE_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a" * 100)))
    assert read_text("-").text == "a" * 11


def test_answer_without_speculation_is_the_same_and_counts_no_guesses(
    tmp_path: Path, folder: Path, expected: str
) -> None:
    tmp_path.joinpath("a.py").write_text(TEXT)
    arguments = ("complete", "a.py", "--json", "--no-speculation", "--model", str(folder), *LIVELY)
    document = json.loads(command_line.run(*arguments, home=tmp_path).stdout)
    assert (document["text"], document["speculation"]) == (expected, {"drafted": 0, "accepted": 0})
