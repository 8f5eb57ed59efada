"""`cg-local info`: model folders, published weights, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Inside

from cg_local import memory
from cg_local.config import EngineConfig
from cg_local.model_folder import open_model_folder
from cg_local.speculation import MAX_DRAFT_TOKENS


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


def test_model_folder_is_described_line_by_line(inside: Inside, tmp_path: Path, folder: Path) -> None:
    done = inside.run("info", str(folder), "--context", "512", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[:4] == [
        f"model       {folder}",
        f"path        {folder} (model folder)",
        "network     2 layers, hidden 256, intermediate 512, 4 heads of 64, 1 for K/V, vocabulary 768",
        "parameters  1,312,000",
    ]
    assert lines[4].startswith("licence     Gemma is provided under and subject to the Gemma Terms of Use")
    assert lines[5].startswith("quality     signal to noise ")
    assert lines[6] == (
        "q4          5.13 bits a weight: weights 821.6 KiB + K/V 256.0 KiB (float16) for 512 tokens + scratch "
        "6.5 MiB = 7.5 MiB; fits in 1.0 GiB of free memory"
    )
    assert len(lines) == 7


def test_document_holds_the_figures_that_loading_compares(inside: Inside, tmp_path: Path, folder: Path) -> None:
    done = inside.run("info", str(folder), "--json", home=tmp_path)
    document = json.loads(done.stdout)
    opened = open_model_folder(folder)
    [scheme] = document["schemes"]
    loading = EngineConfig(max_draft_tokens=MAX_DRAFT_TOKENS)
    need = memory.memory_need(scheme["weight_bytes"], opened.scheme, opened.config, loading)
    assert scheme["total_bytes"] == need.total
    assert scheme["kv_cache_bytes"] == need.kv_cache
    assert scheme["fits"] is True
    assert document["architecture"]["parameters"] == opened.config.num_parameters
    assert document["kind"] == "model folder"


def test_verify_reads_every_byte(inside: Inside, tmp_path: Path, folder: Path) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    done = inside.run("info", "copy", "--verify", home=tmp_path)
    assert "verified    every digest matches\n" in done.stdout.decode()
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    done = inside.run("info", "copy", "--verify", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "its bytes do not match their digest" in done.stderr.decode()


def test_published_weights_show_what_each_scheme_gives(
    inside: Inside, tmp_path: Path, toy_checkpoint: Callable[[str], Path]
) -> None:
    source = str(toy_checkpoint("mqa"))
    done = inside.run("info", source, home=tmp_path)
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "(published weights)" in text
    for beginning in ("q4          5.13 bits", "q8          8.27 bits", "bf16        16.02 bits"):
        assert f"\n{beginning}" in text
    assert inside.run("info", source, "--verify", home=tmp_path).returncode == 2


def test_what_does_not_fit_is_said(
    inside: Inside, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    done = inside.run("info", str(folder), home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.decode().endswith("does NOT fit in 1.0 MiB of free memory\n")


def test_context_beyond_the_models_is_said(inside: Inside, tmp_path: Path, folder: Path) -> None:
    limit = open_model_folder(folder).config.max_position_embeddings
    done = inside.run("info", str(folder), "--context", str(limit + 1), home=tmp_path)
    assert f" for {limit:,} tokens + " in done.stdout.decode()
    found = done.stderr.decode()
    expected = f"{folder} was trained for {limit:,} tokens: the figures are for those, not for {limit + 1:,}"
    assert found == f"cg-local: {expected}\n"
    assert inside.run("info", str(folder), "--context", str(limit), home=tmp_path).stderr == b""


def test_unknown_model_is_one_line(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("info", "none", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cg-local: error: none: no such model or folder; known names: nano")
