"""Quantizing whole checkpoints: content, refusals, interruptions, and bytes that depend on the weights alone."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from toy_models import MHA, MQA, toy_weights, write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CheckpointError, ModelFolderError, QuantizeError
from cg_local.model_folder import open_model_folder
from cg_local.packing import bfloat16_from_float32, dequantize, float32_from_bfloat16
from cg_local.quant import plan, quantize


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(toy_checkpoint):
    return toy_checkpoint("mqa")


# Largest relative error energy of a format on normal weights, with room for the few groups of a toy: 22.4 and 44.8 dB.
LIMITS = {"c4g32": 5.8e-3, "i8g64": 3.4e-5}


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize("scheme", ["q4", "q8", "bf16"])
def test_folder_holds_the_checkpoint_within_the_error_of_its_formats(toy_checkpoint, toy_folder, family, scheme):
    checkpoint = open_checkpoint(toy_checkpoint(family))
    folder = open_model_folder(toy_folder(family, scheme), verify=True)
    assert set(folder.matrices) | set(folder.gains) == set(checkpoint.tensor_names)
    for name, gain in folder.gains.items():
        np.testing.assert_array_equal(gain, 1 + checkpoint.tensor(name))
    for name, matrix in folder.matrices.items():
        x = checkpoint.tensor(name)
        error = ((dequantize(matrix) - x).astype(float) ** 2).sum() / (x.astype(float) ** 2).sum()
        assert error <= LIMITS.get(matrix.format, 0)
        assert folder.metadata["quality"][name]["relative_error"] == pytest.approx(error, rel=1e-4)


def test_q4_keeps_embedding_key_and_value_at_eight_bits(toy_folder):
    formats = {name: matrix.format for name, matrix in open_model_folder(toy_folder("mqa", "q4")).matrices.items()}
    assert {name for name, format in formats.items() if format == "i8g64"} == {
        "model.embed_tokens.weight",
        *(f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in "kv"),
    }
    assert set(formats.values()) == {"i8g64", "c4g32"}


def test_separate_head_is_quantized_like_the_embedding(tmp_path):
    source = write_toy_checkpoint(tmp_path / "source", MHA, lm_head="different", has_tokenizer=True)
    report = quantize(source, tmp_path / "model", "q4")
    head = open_model_folder(tmp_path / "model", verify=True).matrices["lm_head.weight"]
    x = open_checkpoint(source).tensor("lm_head.weight")
    assert head.format == "i8g64"
    assert ((dequantize(head) - x) ** 2).sum() <= LIMITS["i8g64"] * (x**2).sum()
    assert any("lm_head.weight differs" in notice for notice in report.notices)


def test_bf16_rounds_float32_weights_to_bfloat16(tmp_path):
    source = write_toy_checkpoint(tmp_path / "source", MQA, dtype="F32", has_tokenizer=True)
    quantize(source, tmp_path / "model", "bf16")
    checkpoint = open_checkpoint(source)
    for name, matrix in open_model_folder(tmp_path / "model").matrices.items():
        rounded = float32_from_bfloat16(bfloat16_from_float32(checkpoint.tensor(name)))
        np.testing.assert_array_equal(dequantize(matrix), rounded)


def test_matrices_that_groups_do_not_divide_fall_back_with_a_notice(tmp_path):
    values = {**MQA, "hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3, "head_dim": 6}
    source = write_toy_checkpoint(tmp_path / "source", values, has_tokenizer=True)
    report = quantize(source, tmp_path / "model", "q4")
    formats = {tensor.name: tensor.format for tensor in report.tensors}
    assert formats["model.layers.0.mlp.down_proj.weight"] == "i8g64"  # 320 columns
    assert formats["model.layers.0.self_attn.o_proj.weight"] == "bf16"  # 18 columns
    assert any(
        "o_proj.weight: 18 columns do not divide into groups of c4g32; stored as bf16" in n for n in report.notices
    )
    folder = open_model_folder(tmp_path / "model", verify=True)
    x = open_checkpoint(source).tensor("model.layers.1.self_attn.o_proj.weight")
    np.testing.assert_array_equal(dequantize(folder.matrices["model.layers.1.self_attn.o_proj.weight"]), x)


def test_model_folder_depends_neither_on_threads_nor_on_slabs_nor_on_the_time(source, tmp_path, monkeypatch):
    folders = []
    for number, (threads, slab_bytes) in enumerate([(1, 16 << 20), (3, 64 << 10), (2, 1)]):
        monkeypatch.setattr("cg_local.quant.slabs.SLAB_BYTES", slab_bytes)
        quantize(source, tmp_path / str(number), "q4", num_threads=threads)
        folders.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert folders[0] == folders[1] == folders[2]


def test_small_files_are_copied_and_sources_recorded(source, toy_folder):
    folder = toy_folder("mqa", "q8")
    assert names(folder) == ["NOTICE", "config.json", "model.safetensors", "tokenizer.model"]
    for name in ("config.json", "tokenizer.model"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    notice = (folder / "NOTICE").read_text()
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in notice
    assert "modified: quantized by cg-local" in notice
    recorded = open_model_folder(folder).metadata["sources"]["model.safetensors"]
    data = (source / "model.safetensors").read_bytes()
    assert recorded == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_source_under_the_apache_license_keeps_it_and_gets_no_other_terms(tmp_path):
    source = write_toy_checkpoint(tmp_path / "source", has_tokenizer=True)
    (source / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    quantize(source, tmp_path / "model", "bf16")
    assert names(tmp_path / "model") == ["LICENSE", "config.json", "model.safetensors", "tokenizer.model"]
    assert (tmp_path / "model" / "LICENSE").read_text() == "Apache License\nVersion 2.0\n"


def test_notice_of_the_source_is_kept_before_the_one_of_gemma(tmp_path):
    source = write_toy_checkpoint(tmp_path / "source", has_tokenizer=True)
    (source / "NOTICE").write_text("fine-tuned by a third party\n")
    quantize(source, tmp_path / "model", "bf16")
    notice = (tmp_path / "model" / "NOTICE").read_text()
    assert notice.startswith("fine-tuned by a third party\nGemma is provided under and subject to")


def test_report_and_progress_agree_with_the_plan(source, tmp_path):
    calls = []
    report = quantize(source, tmp_path / "model", "q4", on_progress=lambda *call: calls.append(call))
    planned = plan(source, "q4")
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1][0] == calls[-1][1] == planned.num_bytes == report.num_bytes
    assert {call[2] for call in calls} == {tensor.name for tensor in planned.tensors}
    assert {tensor.name: tensor.format for tensor in report.tensors} == planned.formats
    assert report.bits_per_weight == planned.bits_per_weight
    file_bytes = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert planned.num_bytes <= file_bytes < planned.num_bytes + 40_000


def test_plan_writes_nothing_and_needs_no_numba(source, tmp_path):
    script = f"import sys, cg_local.quant as q; q.plan({str(source)!r}, 'q4'); assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert names(tmp_path) == []


def test_unknown_scheme_is_refused(source, tmp_path):
    with pytest.raises(QuantizeError, match="unknown scheme 'q3'; known are q4, q4s, q8, bf16"):
        quantize(source, tmp_path / "model", "q3")


def test_source_without_tokenizer_is_refused(tmp_path):
    source = write_toy_checkpoint(tmp_path / "source")
    with pytest.raises(QuantizeError, match=r"tokenizer\.model is missing; download it"):
        quantize(source, tmp_path / "model")
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_tensor_and_row(tmp_path, value):
    weights = toy_weights(ModelConfig.from_dict(MQA, "toy"))
    weights["model.layers.1.mlp.up_proj.weight"][77, 5] = value
    source = write_toy_checkpoint(tmp_path / "source", weights=weights, has_tokenizer=True)
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds .* in row 77"):
        quantize(source, tmp_path / "model")
    assert names(tmp_path) == ["source"]


def test_weights_beyond_the_scales_are_refused_with_tensor_and_rows(tmp_path):
    weights = toy_weights(ModelConfig.from_dict(MQA, "toy"))
    weights["model.layers.0.self_attn.v_proj.weight"][3, 200] = 1e8
    source = write_toy_checkpoint(tmp_path / "source", weights=weights, has_tokenizer=True)
    with pytest.raises(QuantizeError, match=r"v_proj\.weight, rows 0 to 63: a scale of .* is needed, float16 ends"):
        quantize(source, tmp_path / "model")
    assert names(tmp_path) == ["source"]


def test_existing_destination_is_refused_before_any_work(source, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(QuantizeError, match="model: exists; choose another folder or pass --overwrite"):
        quantize(source, tmp_path / "model")


def test_overwrite_replaces_a_model_folder(source, tmp_path):
    quantize(source, tmp_path / "model", "q8")
    quantize(source, tmp_path / "model", "bf16", overwrite=True)
    assert open_model_folder(tmp_path / "model", verify=True).scheme == "bf16"
    assert names(tmp_path) == ["model"]


def foreign_folder(path, source):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def foreign_checkpoint(path, source):
    shutil.copytree(source, path)


def model_with_a_guest(path, source):
    quantize(source, path, "bf16")
    (path / "thesis.txt").write_text("years of work")


def damaged_model(path, source):
    quantize(source, path, "bf16")
    os.truncate(path / "model.safetensors", 5000)


def plain_file(path, source):
    path.write_text("years of work")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_folder, r"holds thesis\.txt, which is not cg-local's"),
        (foreign_checkpoint, "holds weights that cg-local did not write"),
        (model_with_a_guest, r"holds thesis\.txt, which is not cg-local's"),
        (damaged_model, "not a sound model folder, so it stays"),
        (plain_file, "not a folder, so it is not overwritten"),
    ],
)
def test_overwrite_never_deletes_what_is_not_a_model_folder(source, tmp_path, make, message):
    path = tmp_path / "model"
    make(path, source)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(QuantizeError, match=message):
        quantize(source, path, "bf16", overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_overwrite_spares_what_came_into_the_folder_meanwhile(source, tmp_path):
    quantize(source, tmp_path / "model", "q8")
    guest = tmp_path / "model" / "thesis.txt"
    with pytest.raises(QuantizeError, match=r"holds thesis\.txt, which is not cg-local's"):
        quantize(source, tmp_path / "model", "bf16", overwrite=True, on_progress=lambda *_: guest.touch())
    assert guest.exists()
    assert open_model_folder(tmp_path / "model").scheme == "q8"
    guest.unlink()
    said = []
    quantize(source, tmp_path / "model", "bf16", overwrite=True, on_notice=said.append)
    assert said == [f"{tmp_path / 'model'}: continues at 100 %"]
    assert open_model_folder(tmp_path / "model", verify=True).scheme == "bf16"
    assert names(tmp_path) == ["model"]


def test_folder_that_a_killed_run_had_set_aside_is_refused_before_any_work(source, tmp_path):
    quantize(source, tmp_path / "model", "q8")
    (tmp_path / "model").rename(tmp_path / ".model.old")
    calls = []
    with pytest.raises(QuantizeError, match="model: exists; choose another folder or pass --overwrite"):
        quantize(source, tmp_path / "model", on_progress=lambda *_: calls.append(1))
    assert not calls
    assert open_model_folder(tmp_path / "model").scheme == "q8"


def test_destination_without_a_name_is_refused(source):
    with pytest.raises(QuantizeError, match="not the name of a new folder; choose another place"):
        quantize(source, "/")


def test_too_little_free_space_is_refused_with_the_numbers(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12345))
    with pytest.raises(QuantizeError, match=r"12,345 bytes free, [\d,]+ needed; make room"):
        quantize(source, tmp_path / "model")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_killed_run_leaves_nothing_that_opens_and_the_next_run_succeeds(source, tmp_path):
    script = f"""
import os, signal
from cg_local.quant import quantize
def kill(done_bytes, total_bytes, tensor):
    if done_bytes == total_bytes:
        os.kill(os.getpid(), signal.SIGKILL)
quantize({str(source)!r}, {str(tmp_path / "model")!r}, "bf16", on_progress=kill)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == [".model.lock", ".model.partial"]
    with pytest.raises(ModelFolderError, match="no such folder"):
        open_model_folder(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="claims a header of 0 bytes"):
        open_model_folder(tmp_path / ".model.partial" / "folder")
    quantize(source, tmp_path / "model", "bf16")
    assert names(tmp_path) == ["model"]


def test_second_run_on_the_same_destination_is_refused(source, tmp_path):
    def second_run(done_bytes, total_bytes, tensor):
        with pytest.raises(QuantizeError, match=f"process {os.getpid()} is writing it now; wait for it"):
            quantize(source, tmp_path / "model", "bf16")

    quantize(source, tmp_path / "model", "bf16", on_progress=second_run)
    open_model_folder(tmp_path / "model", verify=True)
