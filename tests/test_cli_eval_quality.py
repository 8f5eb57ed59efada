"""`cg-local eval quality`: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Inside

from cg_local.cli.eval_quality import with_baseline

SHORT = ("--tokens", "500", "--window", "64")


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


def refusal(inside: Inside, home: Path, *arguments: str) -> str:
    """Run what must fail with one line; return the line."""
    done = inside.run("eval", "quality", *arguments, home=home)
    assert done.returncode == 1
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_models_are_compared_and_everything_is_written(
    inside: Inside, tmp_path: Path, toy_checkpoint: Callable[[str], Path], toy_folder: Callable[[str, str], Path]
) -> None:
    pytest.importorskip("matplotlib")
    source, q4, q8 = (str(path) for path in (toy_checkpoint("mqa"), toy_folder("mqa", "q4"), toy_folder("mqa", "q8")))
    places = ("--output", "quality.json", "--plot", "quality.svg", "--states", "states.npz")
    done = inside.run("eval", "quality", source, q8, "--baseline", q4, *SHORT, *places, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("reference ")
    assert "ratios, code+fim, paired" in text
    document = json.loads((tmp_path / "quality.json").read_text())
    assert [model["name"] for model in document["models"]] == ["mqa-q8", "mqa-q4"]
    assert [model["baseline"] for model in document["models"]] == ["mqa-q4", None]
    assert document["corpus"]["num_tokens"] >= 500
    assert document["window_tokens"] == 64
    assert (tmp_path / "quality.svg").stat().st_size > 1000
    assert (tmp_path / "states.npz").exists()
    again = inside.run("eval", "quality", source, q8, *SHORT, "--states", "states.npz", "--json", home=tmp_path)
    found = json.loads(again.stdout)
    assert found["models"][0]["comparisons"][0]["groups"] == document["models"][0]["comparisons"][0]["groups"]


def test_baseline_in_another_spelling_is_the_model_that_is_there(
    tmp_path: Path, toy_folder: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    q4 = toy_folder("mqa", "q4")
    (tmp_path / "link").symlink_to(q4)
    monkeypatch.chdir(tmp_path)
    for other in (f"{q4}/", f"{q4.parent}/./{q4.name}", "link"):
        assert with_baseline(["nano", str(q4)], other) == (["nano", str(q4)], 1)
    assert with_baseline([str(q4)], "nano") == ([str(q4), "nano"], 1)
    assert with_baseline([str(q4)], None) == ([str(q4)], None)


def test_embedded_name_is_a_reference_and_a_model(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("eval", "quality", "nano", "nano", *SHORT, "--json", home=tmp_path)
    [comparison] = json.loads(done.stdout)["models"][0]["comparisons"]
    assert comparison["groups"]["all"]["kl_max"]["value"] < 1e-9


def test_file_called_quality_is_reached_by_a_path(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "quality").write_text("no JSON\n")
    done = inside.run("eval", "./quality", "--model", "nano", home=tmp_path)
    assert done.returncode == 1
    assert b"quality" in done.stderr
    assert b"line 1" in done.stderr


def test_help_of_both_commands(inside: Inside, tmp_path: Path) -> None:
    ours = inside.run("eval", "quality", "--help", home=tmp_path).stdout.decode()
    assert "cg-local eval quality [OPTIONS]" in ours
    assert "REFERENCE" in ours
    assert "FILE.jsonl" in inside.run("eval", "--help", home=tmp_path).stdout.decode()


def test_refusals_are_one_line(
    inside: Inside, tmp_path: Path, toy_checkpoint: Callable[[str], Path], toy_folder: Callable[[str, str], Path]
) -> None:
    source, q8 = str(toy_checkpoint("mqa")), str(toy_folder("mqa", "q8"))
    (tmp_path / "few.py").write_text("print('few')\n" * 20)
    assert "vocab_size is 768, 4,096 in nano" in refusal(inside, tmp_path, "nano", q8, *SHORT)
    assert "the evaluation share of 1 files" in refusal(inside, tmp_path, source, q8, *SHORT, "--corpus", "few.py")
    assert "takes texts of 1,024 tokens at most" in refusal(inside, tmp_path, source, q8, "--window", "2048")
    assert "whose weights are rounded" in refusal(inside, tmp_path, q8, q8, *SHORT)
    assert "no such model or folder" in refusal(inside, tmp_path, "nothing", q8, *SHORT)
    assert "a plot ends in" in refusal(inside, tmp_path, source, q8, "--plot", "a.txt")
    assert "cannot be written there" in refusal(inside, tmp_path, source, q8, "--output", "missing/a.json")
