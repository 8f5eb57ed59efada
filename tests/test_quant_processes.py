"""Quantizing in processes of their own: killed ones, and such that compile for other instruction sets.

The default run kills some ten processes; 20 random kills, one before every third operation on the file system, and
the instruction sets: pytest -m slow tests/test_quant_processes.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import quantize_program
from toy_models import MQA, write_toy_checkpoint

from cg_local.quant import quantize

needs_kills = pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "source", {**MQA, "num_hidden_layers": 1}, has_tokenizer=True)


def run_program(action: str, source: Path, folder: Path, number: int) -> list[str]:
    command = [sys.executable, quantize_program.__file__, action, str(source), str(folder), str(number)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all the same\n")
    return done.stdout.splitlines()[:-1]


@needs_kills
def test_processes_killed_here_and_there_are_continued_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    printed = run_program("kill-each", source, tmp_path / "model", 37)
    assert printed[-1] == "undisturbed"
    assert 5 < printed.count("same") < 30


@needs_kills
@pytest.mark.slow
def test_processes_killed_before_every_third_operation_are_continued_to_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    printed = run_program("kill-each", source, tmp_path / "model", 3)
    assert printed[-1] == "undisturbed"
    assert printed.count("same") > 60


@needs_kills
@pytest.mark.slow
def test_processes_killed_at_random_are_continued_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    printed = run_program("kill-random", source, tmp_path / "model", 20)
    assert sum(line.startswith("killed") for line in printed) == 20
    assert "same" in printed


INSTRUCTION_SETS = {"x86-64": "+64bit,+cmov,+cx8", "haswell": "+64bit,+cmov,+cx8,+sse4.2,+avx,+avx2,+fma,+f16c,+bmi"}


@pytest.mark.slow
@pytest.mark.parametrize("processor", INSTRUCTION_SETS)
def test_bytes_do_not_depend_on_the_instruction_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str
) -> None:
    script = (
        "import sys; from quantize_program import OF_A_TOY, quantize; [setattr(*each) for each in OF_A_TOY]; "
        "quantize(sys.argv[1], sys.argv[2])"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": INSTRUCTION_SETS[processor],
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "model")]
    subprocess.run(command, check=True, env=environment, timeout=280)
    for module, name, value in quantize_program.OF_A_TOY:
        monkeypatch.setattr(module, name, value)
    quantize(source, tmp_path / "native")
    assert quantize_program.digests(tmp_path / "model") == quantize_program.digests(tmp_path / "native")
