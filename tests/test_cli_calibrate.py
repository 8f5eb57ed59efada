"""`cg-local calibrate`: the pack it writes, what it prints and what it refuses."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Inside
from toy_models import write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.cli.published import progress_bar
from cg_local.model_folder import matrix_shapes
from cg_local.quant.calibration import importance_of, sensitivities_of
from cg_local.quant.calibration_work import CalibrationWork
from cg_local.quant.corpora import Corpus, calibration_corpus
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.importance import FILE_NAME, ImportancePack
from cg_local.tokenizer import Tokenizer

PYTHON = '''def area_{n}(width, height):
    """Return the area of a rectangle of so many meters, number {n} of its kind."""
    total = width * height
    if total < {n}:
        raise ValueError("too small")
    return total
'''
SIZES = ("--corpus", "texts", "--tokens", "600", "--window", "128")


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a toy checkpoint, `toy`, and a folder of small files in Python, `texts`."""
    write_toy_checkpoint(tmp_path / "toy", has_tokenizer=True)
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"file_{number}.py").write_text(PYTHON.format(n=number))
    return tmp_path


def corpus_of(home: Path, num_tokens: int) -> Corpus:
    tokenizer = Tokenizer.from_file(home / "toy" / "tokenizer.model")
    return calibration_corpus(tokenizer, [home / "texts"], num_tokens=num_tokens, window_tokens=128)


def test_pack_lies_beside_the_weights_and_holds_their_statistics(inside: Inside, home: Path) -> None:
    done = inside.run("calibrate", "toy", *SIZES, home=home)
    assert (done.returncode, done.stderr) == (0, b"")
    texts = corpus_of(home, 600)
    text = rf"toy/{FILE_NAME}: \d+\.\d KiB, {texts.num_tokens} tokens of {len(texts.files)} files\n"
    assert re.fullmatch(text, done.stdout.decode().replace("\\", "/"))
    expected = importance_of(open_checkpoint(home / "toy"), texts)
    assert ImportancePack.load(home / "toy" / FILE_NAME).digest == expected.digest


def test_quantize_takes_the_pack(inside: Inside, home: Path) -> None:
    inside.run("calibrate", "toy", *SIZES, home=home)
    for destination, options in (("found", ()), ("named", ("--importance", f"toy/{FILE_NAME}", "--method", "imp"))):
        assert inside.run("quantize", "toy", destination, *options, home=home).returncode == 0
    found, named = ((home / name / "model.safetensors").read_bytes() for name in ("found", "named"))
    assert found == named
    inside.run("quantize", "toy", "fast", "--method", "fast", home=home)
    assert (home / "fast" / "model.safetensors").read_bytes() != found


def test_output_sensitivities_and_document(inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = inside.run(
        "calibrate", "toy", *SIZES, "--sensitivities", "64", "-o", "pack.safetensors", "--json", home=home
    )
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    pack = ImportancePack.load(home / "pack.safetensors")
    assert Path(told.pop("file")) == Path("pack.safetensors")
    assert told.pop("weights") == pack.weights == fingerprint(open_checkpoint(home / "toy"))
    assert told.pop("sensitivities") == pack.sensitivities
    assert told == pack.document
    checkpoint = open_checkpoint(home / "toy")
    assert pack.sensitivities.keys() == matrix_shapes(checkpoint.config, has_separate_head=False).keys()
    assert pack.sensitivities == sensitivities_of(checkpoint, corpus_of(home, 64), pack)
    assert np.isfinite(list(pack.sensitivities.values())).all()
    assert not (home / "toy" / FILE_NAME).exists()


def test_existing_pack_is_kept_unless_told(inside: Inside, home: Path) -> None:
    path = home / "toy" / FILE_NAME
    path.write_bytes(b"somebody's")
    done = inside.run("calibrate", "toy", *SIZES, home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith(f"{FILE_NAME}: exists; choose another file or pass --overwrite\n")
    assert path.read_bytes() == b"somebody's"
    assert inside.run("calibrate", "toy", *SIZES, "--overwrite", home=home).returncode == 0
    assert ImportancePack.load(path).statistics


def refusal(inside: Inside, home: Path, *arguments: str) -> str:
    done = inside.run("calibrate", *arguments, home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


def test_too_few_texts_are_told_and_nothing_is_written(inside: Inside, home: Path) -> None:
    message = refusal(inside, home, "toy", "--corpus", "texts", "--tokens", "600000")
    assert re.search(r"texts: the calibration share of 60 files .* gives [\d,]+ tokens, 600,000 are needed", message)
    assert not (home / "toy" / FILE_NAME).exists()


def test_missing_tokenizer_weights_and_texts_are_told(inside: Inside, home: Path) -> None:
    assert "nowhere" in refusal(inside, home, "toy", "--corpus", "nowhere")
    assert refusal(inside, home, "none", *SIZES).startswith("cg-local: error: none: no such folder")
    (home / "toy" / "tokenizer.model").unlink()
    assert "toy: tokenizer.model is missing; download it" in refusal(inside, home, "toy", *SIZES)


@pytest.mark.parametrize("option", [("--tokens", "63"), ("--window", "63"), ("--sensitivities", "63")])
def test_sizes_that_are_too_small_are_wrong_usage(inside: Inside, home: Path, option: tuple[str, str]) -> None:
    done = inside.run("calibrate", "toy", *option, home=home)
    assert (done.returncode, done.stdout) == (2, b"")


def test_toy_of_the_session_has_no_pack(toy_checkpoint: Callable[[str], Path]) -> None:
    assert not (toy_checkpoint("mqa") / FILE_NAME).exists()


def test_packs_of_embedded_models_and_missing_folders_are_left_alone(inside: Inside, home: Path) -> None:
    own = inside.run("calibrate", "nano", "--overwrite", *SIZES, home=home)
    assert own.returncode == 1
    assert (
        own.stderr == b"cg-local: error: nano belongs to the package, which is not changed; name a file with --output\n"
    )
    folder = inside.run("calibrate", "toy", "-o", "texts", "--overwrite", *SIZES, home=home)
    assert folder.stderr == b"cg-local: error: texts: is a folder, a device or a pipe; name a file with --output\n"
    missing = inside.run("calibrate", "toy", "-o", "nowhere/pack", *SIZES, home=home)
    assert missing.returncode == 1
    assert missing.stderr == b"cg-local: error: nowhere: no such folder; make it or choose another file\n"
    assert not (home / "nowhere").exists()


def test_interrupted_run_is_continued_or_begun_anew(
    inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = CalibrationWork.keep_layer

    def interrupting(work: CalibrationWork, *arguments: Any) -> None:
        keep(work, *arguments)
        raise KeyboardInterrupt

    for option in ((), ("--restart",)):
        with monkeypatch.context() as patch:
            patch.setattr(CalibrationWork, "keep_layer", interrupting)
            stopped = inside.run("calibrate", "toy", *SIZES, "--overwrite", home=home)
        assert (stopped.returncode, stopped.stdout) == (130, b"")
        kept = f".{FILE_NAME}.partial: the work so far is kept; the same command continues it, with --restart it begins"
        assert kept in stopped.stderr.decode()
        done = inside.run("calibrate", "toy", *SIZES, "--overwrite", *option, home=home)
        assert done.returncode == 0
        assert done.stderr.decode().endswith("" if option else f"{FILE_NAME}: continues behind layer 1\n")
        assert sorted(path.name for path in (home / "toy").iterdir() if path.name.startswith(".")) == []


def test_bar_counts_layers_and_matrices_not_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(counts_bytes=False) as on_step:
        assert on_step is not None
        on_step(1, 18, "layer 1 of 18")
        on_step(3, 127, "matrix 3 of 127")
    shown = terminal.getvalue()
    assert " 3/127" in shown
    assert "matrix 3 of 127" in shown
    assert "bytes" not in shown
