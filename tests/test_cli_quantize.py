"""`cg-local quantize`: what it prints, what it refuses, and that the result is a model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Inside

from cg_local.model_folder import open_model_folder
from cg_local.models import embedded_checkpoint


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def source(toy_checkpoint: Callable[[str], Path]) -> str:
    return str(toy_checkpoint("mqa"))


def test_quantize_writes_a_model_folder_and_sums_it_up(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--scheme", "q8", "--verify", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("out: q8, 1.3 MiB, 8.27 bits a weight, ")
    assert text.endswith(" dB; verified\n")
    assert open_model_folder(tmp_path / "out", verify=True).scheme == "q8"


def test_exact_copy_is_called_exact(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--scheme", "bf16", home=tmp_path)
    assert done.stdout.decode().endswith("; exact\n")


def test_dry_run_prints_the_plan_and_writes_nothing(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--dry-run", home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.decode() == (
        "f32         5 tensors     5.0 KiB\n"
        "i8g64       5 tensors   264.0 KiB\n"
        "c4g32      10 tensors   552.6 KiB\n"
        "q4         20 tensors   821.6 KiB  5.13 bits a weight\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_existing_destination_is_refused_unless_told(inside: Inside, tmp_path: Path, source: str) -> None:
    inside.run("quantize", source, "out", "--scheme", "bf16", home=tmp_path)
    done = inside.run("quantize", source, "out", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith("exists; choose another folder or pass --overwrite\n")
    assert open_model_folder(tmp_path / "out").scheme == "bf16"
    assert inside.run("quantize", source, "out", "--scheme", "q8", "--overwrite", home=tmp_path).returncode == 0
    assert open_model_folder(tmp_path / "out").scheme == "q8"


def test_missing_source_is_one_line(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("quantize", "none", "out", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cg-local: error: none: no such folder")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not embedded_checkpoint("nano").joinpath("config.json").exists(), reason="nano is not here")
def test_embedded_name_can_be_quantized(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("quantize", "nano", "out", "--dry-run", home=tmp_path)
    assert done.returncode == 0
    assert b"bits a weight" in done.stdout
