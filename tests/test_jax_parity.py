"""`cg-local parity`: its figures on arrays that are known, its other sides, its tolerances and its exit status."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import Inside
from toy_engines import DequantizedFolder, relative_error, toy_prompt
from toy_jax import compiled

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.jax_backend import parity
from cg_local.jax_backend.other_sides import EngineSide, TransformersSide
from cg_local.model_folder import open_model_folder

FolderMaker = Callable[[str, str], Path]


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


def test_figures_of_known_arrays() -> None:
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))
    figures = parity.measure("logits", expected, found, expected, found)
    value_range = np.log(8)
    assert figures.largest == pytest.approx(np.log(2), rel=1e-6)
    assert figures.mean == pytest.approx(2 * np.log(2) / 6, rel=1e-6)
    assert figures.largest_share == pytest.approx(np.log(2) / value_range, rel=1e-6)
    assert figures.mean_share == pytest.approx(2 * np.log(2) / 6 / value_range, rel=1e-6)
    assert figures.kl_max == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert figures.kl_mean == pytest.approx(0.125 * np.log(2), rel=1e-6)
    assert figures.top1_agreement == 0.5


def test_divergence_is_bounded_by_the_largest_difference_as_the_tolerance_says() -> None:
    random = np.random.default_rng(0)
    for scale in (0.01, 1.0, 5.0):
        a = random.normal(0, 3, (50, 40)).astype(np.float32)
        b = a + random.uniform(-scale, scale, a.shape).astype(np.float32)
        assert parity.kl_divergences(a, b).max() <= scale**2 / 2


def test_difference_that_is_no_number_is_never_within() -> None:
    values = np.array([[0.0, np.nan]], np.float32)
    figures = parity.measure("logits", np.array([[0.0, 1.0]], np.float32), values, values, values)
    assert not parity.is_within(figures, parity.Tolerance(1e9, ""))


@pytest.mark.parametrize("scheme", ["bf16", "q4"])
def test_engine_side_gives_the_residual_stream_after_each_layer(scheme: str, toy_folder: FolderMaker) -> None:
    folder, prompt = toy_folder("mqa", scheme), toy_prompt(20)
    side = EngineSide(open_model_folder(folder), prompt)
    expected = list(reference.residual_stream(DequantizedFolder(folder), prompt))
    states = list(side.states())
    assert len(states) == 3
    for found, state in zip(states, expected, strict=True):
        assert relative_error(parity.unit_rows(state), found) < {"bf16": 1e-5, "q4": 1.6e-2}[scheme]


def test_float32_is_within_a_ten_thousandth_after_every_layer(toy_checkpoint: Callable[[str], Path]) -> None:
    folder, prompt = toy_checkpoint("mha"), toy_prompt(50)
    source = open_checkpoint(folder)
    limit = parity.tolerance("float32", 2, rounds_activations=False, rounds_cache=False)
    side = parity.JaxSide(compiled(folder), prompt)
    found = list(parity.compare(source, side, parity.ReferenceSide(source, prompt)))
    assert [each.place for each in found] == ["embedding", "layer 1", "layer 2", "logits"]
    assert all(parity.is_within(each, limit) for each in found)
    assert all(each.kl_max < 1e-9 and each.top1_agreement == 1 for each in found)


@pytest.mark.transformers
def test_transformers_side_gives_the_residual_stream_of_the_reference(toy_checkpoint: Callable[[str], Path]) -> None:
    folder, prompt = toy_checkpoint("mqa"), toy_prompt(20)
    side = TransformersSide(folder, prompt)
    for found, state in zip(side.states(), reference.residual_stream(open_checkpoint(folder), prompt), strict=True):
        assert relative_error(state, found) < 1e-5
    assert relative_error(reference.logits(folder, prompt), side.logits()) < 1e-5


@pytest.mark.parametrize("scheme", ["bf16", "q8", "q4"])
def test_command_compares_a_folder_with_the_engine(
    inside: Inside, tmp_path: Path, toy_folder: FolderMaker, scheme: str
) -> None:
    folder = str(toy_folder("mqa", scheme))
    done = inside.run("parity", folder, "--against", "engine", "--tokens", "40", "--json", home=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["within_tolerance"] is True
    assert (document["scheme"], document["against"], document["num_tokens"]) == (scheme, "engine", 40)
    assert "cpu" in document["devices"]
    assert [each["place"] for each in document["differences"]] == ["embedding", "layer 1", "layer 2", "logits"]
    assert document["tolerance"] == 1e-4 if scheme == "bf16" else document["tolerance"] > 1e-2


def test_command_fails_where_the_tolerance_is_missed(
    inside: Inside, tmp_path: Path, toy_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "INT8_ROUNDING", 1e-5)
    arguments = ("parity", str(toy_folder("mqa", "q4")), "--against", "engine", "--tokens", "20", "--no-layers")
    done = inside.run(*arguments, home=tmp_path)
    assert done.returncode == 1
    assert "parity is missed at logits: largest difference over 0.01% of the range" in done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1].startswith("logits ")


def test_command_reports_programs_and_reads_a_text(inside: Inside, tmp_path: Path, toy_folder: FolderMaker) -> None:
    (tmp_path / "a.py").write_text("def add(a, b):\n    return a + b\n")
    done = inside.run("parity", str(toy_folder("mqa", "q8")), "--tokens", "a.py", "--report", home=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "JAX in float32 against reference" in text
    assert "\nprefill, batch 1: " in text
    assert "\ndecode, batch 1: " in text
    assert "nothing crosses between devices" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "transformers"], "q4 weights; transformers reads published weights only"),
        (["--tokens", "1"], "--tokens 1: 1 tokens; give 2 to 1,024"),
        (["--mesh", "two"], "mesh 'two': write DATAxTENSOR"),
        (["--scheme", "q8"], "this model folder is q4, q8 was asked for"),
    ],
)
def test_command_refuses_with_one_line(
    inside: Inside, tmp_path: Path, toy_folder: FolderMaker, arguments: list[str], message: str
) -> None:
    done = inside.run("parity", str(toy_folder("mqa", "q4")), *arguments, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert message in done.stderr.decode()


def test_command_without_jax_says_what_to_install(tmp_path: Path, toy_folder: FolderMaker) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError('no jax')\n")
    environment = {**command_line.environment(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command_line.COMMAND, "parity"], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode() == "cg-local: error: JAX is not installed; run `pip install 'cg-local[jax]'`\n"
