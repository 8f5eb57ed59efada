"""`cg-local export`, and GGUF files as what quantize and info read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Inside

from cg_local.checkpoint import open_checkpoint
from cg_local.model_folder import open_model_folder

pytest.importorskip("gguf")


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def source(toy_checkpoint: Callable[[str], Path]) -> str:
    return str(toy_checkpoint("mqa"))


def test_exported_file_is_read_by_info_quantize_and_export(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("export", source, "m.gguf", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith("m.gguf: 20 tensors, 2.5 MiB")
    assert b"2 layers, hidden 256" in inside.run("info", "m.gguf", home=tmp_path).stdout
    assert inside.run("quantize", "m.gguf", "out", "--scheme", "bf16", "--verify", home=tmp_path).returncode == 0
    assert open_model_folder(tmp_path / "out").scheme == "bf16"
    assert inside.run("export", "m.gguf", "wide.gguf", "--float32", home=tmp_path).returncode == 0
    wide, original = open_checkpoint(tmp_path / "wide.gguf"), open_checkpoint(source)
    assert wide.dtype("model.embed_tokens.weight") == "F32"
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(wide.tensor(name), original.tensor(name))


def test_export_replaces_a_file_only_when_told_and_never_its_source(
    inside: Inside, tmp_path: Path, source: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"mine")
    done = inside.run("export", source, "m.gguf", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"cg-local: error: m.gguf: exists; choose another name or pass --overwrite\n"
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"
    assert inside.run("export", source, "m.gguf", "--overwrite", home=tmp_path).returncode == 0
    done = inside.run("export", "m.gguf", "m.gguf", "--overwrite", home=tmp_path)
    assert b"is the source itself" in done.stderr
    assert b"is a folder" in inside.run("export", source, ".", home=tmp_path).stderr
    assert sorted(path.name for path in tmp_path.glob("*.gguf*")) == ["m.gguf"]


def test_gguf_file_as_model_says_how_to_make_one(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    done = inside.run("complete", "m.gguf", "--model", "./m.gguf", home=tmp_path)
    assert done.returncode == 1
    assert b"run `cg-local quantize m.gguf DEST` and use DEST" in done.stderr
