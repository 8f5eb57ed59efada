"""open_checkpoint reads exactly what is stored, from every layout, and names what does not belong together."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import BREAKAGES
from toy_models import MHA, MQA, Weights, stored_values, toy_weights, write_safetensors, write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CheckpointError, ConfigError

SMALL = {**MQA, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_hidden_layers": 1}


def small_weights() -> Weights:
    return toy_weights(ModelConfig.from_dict(SMALL, "toy"))


def refusal(folder: Path) -> str:
    """Open a folder that must be refused; return the message."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("values", "num_shards"), [(MQA, 1), (MHA, 3)], ids=["mqa", "mha-sharded"])
def test_checkpoint_tensors_equal_what_was_stored(tmp_path: Path, values: Any, num_shards: int, dtype: str) -> None:
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", values, dtype=dtype, num_shards=num_shards))
    weights = toy_weights(checkpoint.config)

    assert checkpoint.tensor_names == tuple(weights)
    for name, stored in weights.items():
        assert checkpoint.dtype(name) == dtype
        assert checkpoint.shape(name) == stored.shape
        np.testing.assert_array_equal(checkpoint.tensor(name), stored_values(stored, dtype))


def test_checkpoint_rows_equal_slices_of_the_tensor(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m"))
    name = "model.layers.1.mlp.down_proj.weight"
    whole = checkpoint.tensor(name)

    for start, stop in [(0, 1), (5, 77), (255, 256), (9, 9)]:
        np.testing.assert_array_equal(checkpoint.rows(name, start, stop), whole[start:stop])


def test_checkpoint_tensor_of_several_slabs_equals_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", SMALL))
    whole = checkpoint.tensor("model.embed_tokens.weight")
    monkeypatch.setattr("cg_local.checkpoint.published.SLAB_BYTES", 7 * 4 * 32)

    np.testing.assert_array_equal(checkpoint.tensor("model.embed_tokens.weight"), whole)


def test_checkpoint_lists_its_files_and_keeps_the_config_bytes(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", num_shards=2, has_tokenizer=True)
    checkpoint = open_checkpoint(str(folder))

    assert checkpoint.config_bytes == (folder / "config.json").read_bytes()
    assert checkpoint.tokenizer_path == folder / "tokenizer.model"
    assert {path.name for path in checkpoint.source_files} == {path.name for path in folder.iterdir()}
    assert checkpoint.source_files[0].name == "config.json"
    assert checkpoint.notices == ()


def test_checkpoint_ignores_a_stored_copy_of_the_embedding(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", SMALL, lm_head="equal"))

    assert not checkpoint.has_separate_head
    assert "lm_head.weight" not in checkpoint.tensor_names
    assert checkpoint.notices == ()


def test_checkpoint_uses_a_head_that_differs_and_says_so(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", SMALL, lm_head="different"))

    assert checkpoint.has_separate_head
    assert checkpoint.tensor_names[-1] == "lm_head.weight"
    assert "lm_head.weight differs from the embedding" in checkpoint.notices[0]


def test_checkpoint_head_that_differs_in_one_bit_differs(tmp_path: Path) -> None:
    weights = small_weights()
    head = weights["model.embed_tokens.weight"].copy()
    head[-1, -1] = np.nextafter(head[-1, -1], np.float32(9))
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, dtype="F32", weights={**weights, "lm_head.weight": head})

    assert open_checkpoint(folder).has_separate_head


def test_checkpoint_untied_config_needs_a_head(tmp_path: Path) -> None:
    untied = {**SMALL, "tie_word_embeddings": False}

    assert "lm_head.weight is missing" in refusal(write_toy_checkpoint(tmp_path / "without", untied))
    opened = open_checkpoint(write_toy_checkpoint(tmp_path / "with", untied, lm_head="different"))
    assert opened.has_separate_head
    assert opened.notices == ()


def test_checkpoint_tolerates_known_buffers(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, weights={**small_weights(), **buffer})

    assert not set(buffer) & set(open_checkpoint(folder).tensor_names)


def test_checkpoint_names_a_missing_tensor(tmp_path: Path) -> None:
    weights = small_weights()
    del weights["model.layers.0.mlp.up_proj.weight"], weights["model.norm.weight"]
    message = refusal(write_toy_checkpoint(tmp_path / "m", SMALL, weights=weights))

    assert "tensor model.layers.0.mlp.up_proj.weight (the first of 2) is missing" in message
    assert "download" in message


def test_checkpoint_names_a_spare_tensor(tmp_path: Path) -> None:
    spare = {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    message = refusal(write_toy_checkpoint(tmp_path / "m", SMALL, weights={**small_weights(), **spare}))

    assert "tensor model.layers.0.self_attn.q_proj.bias is not part of the network" in message


def test_checkpoint_names_a_wrong_shape(tmp_path: Path) -> None:
    weights = {**small_weights(), "model.layers.0.self_attn.k_proj.weight": np.ones((16, 32), np.float32)}
    message = refusal(write_toy_checkpoint(tmp_path / "m", SMALL, weights=weights))

    assert "tensor model.layers.0.self_attn.k_proj.weight has shape [16, 32], config.json needs [8, 32]" in message


def test_checkpoint_names_a_quantized_dtype(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, dtype="F16")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"I16"'))

    assert "is stored as I16; needed is one of BF16, F16, F32" in refusal(folder)


def test_checkpoint_names_the_row_of_a_nan(tmp_path: Path) -> None:
    weights = small_weights()
    weights["model.embed_tokens.weight"][41, 3] = np.nan
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", SMALL, weights=weights))

    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight holds NaN or infinity in row 41"):
        checkpoint.tensor("model.embed_tokens.weight")


def test_checkpoint_prefers_the_single_file_like_transformers(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, num_shards=2)
    write_safetensors(folder / "model.safetensors", small_weights())

    assert open_checkpoint(folder).dtype("model.norm.weight") == "F32"


def test_checkpoint_names_a_missing_shard(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()

    assert "model-00002-of-00003.safetensors is missing (2 of the index's 3 files are there)" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": "model-00001-of-00002.safetensors"}, "which does not hold it"),
        ({"model.spare.weight": "model-00001-of-00002.safetensors"}, "which does not hold it"),
        ({"model.norm.weight": "../elsewhere.safetensors"}, "needed is the name of a .safetensors file in the same"),
        ({"model.norm.weight": "/etc/passwd"}, "needed is the name of a .safetensors file in the same"),
        ({"model.norm.weight": "pytorch_model.bin"}, "needed is the name of a .safetensors file in the same"),
        ({"model.norm.weight": 3}, "needed is the name of a .safetensors file in the same"),
        ({"model.norm.weight": None}, "but the index does not list it"),
    ],
)
def test_checkpoint_refuses_an_index_that_disagrees(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, num_shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = {**json.loads(index.read_text())["weight_map"], **change}
    if change == {"model.norm.weight": None}:
        del weight_map["model.norm.weight"]
    index.write_text(json.dumps({"weight_map": weight_map}))

    assert words in refusal(folder)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": [1]}', b"\xff", b"[" * 99_999]
)
def test_checkpoint_refuses_a_malformed_index(tmp_path: Path, data: bytes) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL, num_shards=2)
    (folder / "model.safetensors.index.json").write_bytes(data)

    assert "download it again" in refusal(folder)


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_checkpoint_refuses_damaged_weights(tmp_path: Path, breakage: str) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL)
    path = folder / "model.safetensors"
    path.write_bytes(BREAKAGES[breakage][0](path.read_bytes()))

    message = refusal(folder)

    assert message.startswith(f"{path}: ")
    assert BREAKAGES[breakage][1] in message or "PyTorch pickle" in message
    assert "download" in message or "PyTorch pickle" in message


def test_checkpoint_recognizes_a_git_lfs_pointer(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")

    assert "git lfs pull" in refusal(folder)


def test_checkpoint_recognizes_a_folder_that_is_quantized_already(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL)
    write_safetensors(folder / "model.safetensors", small_weights(), metadata={"cg_local": "{}"})

    assert "already quantized" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("codegemma-2b.gguf", "GGUF"),
        ("pytorch_model-00001-of-00002.bin", "PyTorch"),
        ("codegemma-2b.ckpt", "PyTorch"),
        ("model.weights.h5", "Keras"),
        ("_METADATA", "orbax"),
        ("2b-pt/checkpoint", "orbax"),
        ("flax_model.msgpack", "Flax"),
        ("2b-pt-sfp.sbs", "gemma.cpp"),
        ("adapter_model.safetensors", "PEFT adapter"),
        ("weights.safetensors", "other names"),
        ("snapshots/0/config.json", "snapshots/<revision>"),
        ("codegemma-2b/config.json", "give one of them"),
        ("README.md", "a folder without weights"),
    ],
)
def test_checkpoint_names_the_format_of_a_foreign_folder(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "m" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF" + bytes(60))
    message = refusal(tmp_path / "m")

    assert words in message
    assert "needed is a folder in the Hugging Face layout" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF\x03", "the file is damaged"),
        (b"PK\x03\x04", "a damaged PyTorch or zip archive"),
        (b"\x80\x02", "PyTorch pickle"),
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"hello", "no known weight format"),
        (b"", "no known weight format"),
    ],
)
def test_checkpoint_names_the_format_of_a_file(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "model.any"
    path.write_bytes(data)

    assert words in refusal(path)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("archive/data.pkl", "found a PyTorch checkpoint"),
        ("model.weights.h5", "found a Keras model"),
        ("notes.txt", "unpack it"),
    ],
)
def test_checkpoint_looks_into_an_archive(tmp_path: Path, member: str, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "model.any", "w") as archive:
        archive.writestr(member, b"")
    assert words in refusal(tmp_path / "model.any")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("codegemma-1.1-7b-it-pytorch/model.ckpt", "google/codegemma-1.1-7b-it "),
        ("keras/code_gemma_1.1_2b_en/model.weights.h5", "google/codegemma-1.1-2b "),
        ("code_gemma_instruct_7b_en/model.weights.h5", "google/codegemma-7b-it "),
        ("codegemma/flax/7b-pt/_METADATA", "google/codegemma-7b "),
        ("codegemma-2b.ckpt", "google/codegemma-2b "),
    ],
)
def test_checkpoint_names_the_repository_of_the_same_weights(tmp_path: Path, name: str, repository: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80\x02")
    assert f"`hf download {repository}" in refusal(path)
    if path.parent != tmp_path:
        assert f"`hf download {repository}" in refusal(path.parent)


def test_checkpoint_names_what_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refusal(tmp_path / "empty")
    folder = write_toy_checkpoint(tmp_path / "m", SMALL)
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refusal(folder)
    assert "give the folder that holds it" in refusal(folder / "model.safetensors")


def test_checkpoint_whose_file_is_cut_later_is_an_error_not_a_crash(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path / "m", SMALL)
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)

    with pytest.raises(CheckpointError, match="download it again"):
        checkpoint.tensor("model.norm.weight")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_checkpoint_memory_stays_at_one_slab(tmp_path: Path) -> None:
    values = {**SMALL, "vocab_size": 40_000, "hidden_size": 512}
    shapes = ModelConfig.from_dict(values, "toy").tensor_shapes()
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "m", values, weights=weights))  # 41 MB
    before = resident_pages()
    growth = 0
    for start in range(0, 40_000, 500):
        checkpoint.rows("model.embed_tokens.weight", start, start + 500)  # 1 MB as float32
        growth = max(growth, resident_pages() - before)

    assert growth * os.sysconf("SC_PAGESIZE") < 8 << 20


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])
