"""GGUF files as published weights: every type, every converter's oddities, every kind of damage."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import SCALE_BYTES, vocabulary, write_gguf
from toy_models import MHA, MQA, write_toy_checkpoint
from toy_tokenizer import toy_tokenizer_bytes

from cg_local.checkpoint import gguf_checkpoint, open_checkpoint
from cg_local.checkpoint.gguf_container import GgufContainer
from cg_local.checkpoint.gguf_vocabulary import rebuild_tokenizer
from cg_local.checkpoint.sentencepiece_model import sentencepiece_model, sentencepiece_pieces
from cg_local.errors import CgLocalError, CheckpointError, ConfigError
from cg_local.gguf_export import export_gguf
from cg_local.models import embedded_checkpoint
from cg_local.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

EMBEDDING = "model.embed_tokens.weight"
TEXTS = (
    "def f(a,  b):\n\n\n\treturn a <= b  # \u00e9\u4e16\u754c \U0001f600\n    <table><h1>x</h1></table>",
    "  leading, trailing   ",
    "<|fim_prefix|><bos><unused5>\u2581 x12345 \x00\r\n" + " " * 40 + "\n" * 40,
)


def refusal(path: Path) -> str:
    """Open a file that must be refused; return the message."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("kind", SCALE_BYTES)
def test_blocks_decode_to_the_bits_of_the_gguf_package_in_every_slab(tmp_path: Path, kind: str) -> None:
    stored = write_gguf(tmp_path / "m.gguf", kind=kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    for name in (EMBEDDING, "model.layers.1.mlp.down_proj.weight"):
        expected = gguf.quants.dequantize(stored[name], gguf.GGMLQuantizationType[kind])
        num_rows = len(expected)
        assert checkpoint.dtype(name) == kind
        assert np.abs(expected).max() > 0
        for start, stop in [(0, 1), (1, 8), (8, 61), (61, num_rows - 3), (num_rows - 3, num_rows), (5, 5)]:
            np.testing.assert_array_equal(bits(checkpoint.rows(name, start, stop)), bits(expected[start:stop]))
        np.testing.assert_array_equal(bits(checkpoint.tensor(name)), bits(expected))
    assert f"already rounded ({kind})" in checkpoint.notices[0]


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("values", [MQA, MHA], ids=["mqa", "mha"])
def test_unquantized_weights_are_the_stored_ones_and_norms_offsets_from_one(
    tmp_path: Path, values: Any, kind: str
) -> None:
    stored = write_gguf(tmp_path / "m.gguf", values, kind=kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    assert checkpoint.tensor_names == tuple(stored)
    assert checkpoint.notices == ()
    for name, weights in stored.items():
        found = checkpoint.tensor(name)
        if weights.ndim == 1:
            gains = weights + np.float32(1)
            np.testing.assert_array_equal(bits(found + np.float32(1)), bits(gains))
            assert np.abs(found - weights).max() < 1e-7
        else:
            np.testing.assert_array_equal(found, weights if kind == "F32" else weights.astype(np.float16))


@pytest.mark.parametrize("name", ["nano", "nano-it"])
def test_an_exported_model_comes_back_with_its_weights_and_tokenizer(tmp_path: Path, name: str) -> None:
    source = open_checkpoint(embedded_checkpoint(name))
    export_gguf(source, tmp_path / "m.gguf")
    found = open_checkpoint(tmp_path / "m.gguf")

    assert found.config == source.config
    assert found.tensor_names == source.tensor_names
    assert found.chat_template == source.chat_template
    assert found.is_free_of_gemma_terms
    for tensor in source.tensor_names:
        weights = source.tensor(tensor) + np.float32(source.tensor(tensor).ndim == 1)
        np.testing.assert_array_equal(bits(found.tensor(tensor) + np.float32(weights.ndim == 1)), bits(weights))
    original = source.tokenizer_bytes()
    assert original is not None
    assert_same_tokenizer(found.tokenizer_bytes(), original)


def assert_same_tokenizer(rebuilt: bytes | None, original: bytes) -> None:
    """Compare pieces, then ids and texts of prose, code and random characters."""
    assert rebuilt is not None
    assert list(sentencepiece_pieces(rebuilt)) == list(sentencepiece_pieces(original))
    ours, theirs = Tokenizer.from_bytes(rebuilt, "rebuilt"), Tokenizer.from_bytes(original, "original")
    source = random.Random(0)
    noise = ["".join(source.choices("ab \n\t<>_/h1\u2581\u00e9\u4e16{}()=.,0123", k=200)) for _ in range(50)]
    for text in (*TEXTS, *noise, Path(__file__).read_text(encoding="utf-8")):
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == text
    for token_id in range(theirs.vocab_size):
        assert ours.token_bytes(token_id) == theirs.token_bytes(token_id)


def test_serialized_pieces_come_back() -> None:
    pieces = list(sentencepiece_pieces(toy_tokenizer_bytes()))
    assert list(sentencepiece_pieces(sentencepiece_model(pieces))) == pieces


@pytest.mark.parametrize("is_old", [True, False], ids=["spring-2024", "later"])
def test_tokenizer_is_the_original_whatever_the_converter_wrote(is_old: bool) -> None:
    entries = vocabulary(800, is_old=is_old)
    metadata = {
        key: [text.encode() for text in value]
        if key.endswith("tokens")
        else np.array(value)
        if isinstance(value, list)
        else value
        for key, value in entries.items()
    }
    assert ("tokenizer.ggml.add_space_prefix" in metadata) != is_old
    assert_same_tokenizer(rebuild_tokenizer(metadata, 800, "m"), toy_tokenizer_bytes())
    del metadata["tokenizer.ggml.token_type"]
    assert_same_tokenizer(rebuild_tokenizer(metadata, 800, "m"), toy_tokenizer_bytes())


def test_base_gemmas_names_survive() -> None:
    base = toy_tokenizer_bytes(base_gemma=True)
    entries = vocabulary(768, is_old=True, model=base)
    metadata = {
        **entries,
        "tokenizer.ggml.tokens": [text.encode() for text in entries["tokenizer.ggml.tokens"]],
        "tokenizer.ggml.scores": np.array(entries["tokenizer.ggml.scores"]),
        "tokenizer.ggml.token_type": np.array(entries["tokenizer.ggml.token_type"]),
    }
    assert_same_tokenizer(rebuild_tokenizer(metadata, 768, "m"), base)


def test_google_layout_loses_its_padding_rows_and_needs_no_optional_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The official files have 256,128 rows for 256,000 pieces; here 896 for 768.
    monkeypatch.setattr(gguf_checkpoint, "PADDED_ROWS", 896)
    monkeypatch.setattr(gguf_checkpoint, "NUM_PIECES", 768)
    left_out = ("gemma.attention.key_length", "gemma.attention.value_length", "gemma.attention.head_count_kv")
    stored = write_gguf(tmp_path / "m.gguf", MHA, padding_rows=128, is_old=True, left_out=left_out)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    config = checkpoint.config
    assert (config.vocab_size, config.head_dim, config.num_kv_heads) == (768, 64, 6)
    assert (config.rope_theta, config.rms_norm_eps) == (10000.0, 1e-6)
    np.testing.assert_array_equal(checkpoint.tensor(EMBEDDING), stored[EMBEDDING][:768])
    tokenizer = Tokenizer.from_bytes(checkpoint.tokenizer_bytes() or b"", "m")
    assert tokenizer.vocab_size == 768
    assert tokenizer.encode("def f") == Tokenizer.from_bytes(toy_tokenizer_bytes(), "toy").encode("def f")


def test_quantizing_a_gguf_file_gives_the_bytes_of_quantizing_the_folder(tmp_path: Path) -> None:
    from cg_local.model_folder import open_model_folder
    from cg_local.quant import quantize

    folder = write_toy_checkpoint(tmp_path / "toy", has_tokenizer=True)
    export_gguf(open_checkpoint(folder), tmp_path / "toy.gguf")
    quantize(folder, tmp_path / "a", "q4", num_threads=1)
    quantize(tmp_path / "toy.gguf", tmp_path / "b", "q4", num_threads=2)

    ours, theirs = open_model_folder(tmp_path / "b", verify=True), open_model_folder(tmp_path / "a")
    assert ours.metadata["sha256"] == theirs.metadata["sha256"]
    assert list(ours.metadata["sources"]) == ["toy.gguf"]
    assert b"Gemma Terms of Use" in (tmp_path / "b" / "NOTICE").read_bytes()
    assert json.loads((tmp_path / "b" / "config.json").read_bytes())["head_dim"] == 64


def test_separate_head_is_used_and_an_equal_one_ignored(tmp_path: Path) -> None:
    checkpoint = write_toy_checkpoint(tmp_path / "m", has_tokenizer=True, lm_head="different")
    export_gguf(open_checkpoint(checkpoint), tmp_path / "m.gguf")
    found = open_checkpoint(tmp_path / "m.gguf")

    assert found.has_separate_head
    np.testing.assert_array_equal(found.tensor("lm_head.weight"), open_checkpoint(checkpoint).tensor("lm_head.weight"))
    assert any("output.weight differs" in text for text in found.notices)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"architecture": "llama"}, "architecture llama"),
        ({"architecture": "gemma2"}, "architecture gemma2"),
        ({"metadata": {"general.type": "adapter"}}, "of type adapter"),
        ({"metadata": {"split.count": 3, "split.no": 1}}, "part 2 of a GGUF file split in 3"),
        ({"metadata": {"gemma.final_logit_softcapping": 30.0}}, "gemma.final_logit_softcapping is not known"),
        ({"metadata": {"gemma.rope.scaling.type": "yarn"}}, "changes the positions"),
        ({"metadata": {"gemma.attention.value_length": 32}}, "differs from the width of a head"),
        ({"metadata": {"gemma.block_count": "two"}}, "gemma.block_count is two, not an integer"),
        ({"metadata": {"gemma.feed_forward_length": 513}}, "has shape [512, 256], the metadata needs [513, 256]"),
        ({"metadata": {"gemma.block_count": 1}}, "tensor blk.1.attn_norm.weight (the first of 9) is not part"),
        ({"left_out": ("gemma.embedding_length",)}, "gemma.embedding_length is missing"),
        ({"left_out": ("blk.1.ffn_up.weight",)}, "tensor blk.1.ffn_up.weight is missing"),
        ({"left_out": ("token_embd.weight",)}, "token_embd.weight is missing"),
    ],
)
def test_a_file_that_is_no_whole_gemma_is_named(tmp_path: Path, keywords: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "m.gguf", **keywords)
    assert words in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "a tokenizer of the kind gpt2"),
        ({"tokenizer.ggml.scores": [1.0, 2.0]}, "not lists of one length"),
        ({"tokenizer.ggml.tokens": ["a"] * 768}, "empty or repeated tokens"),
    ],
)
def test_a_vocabulary_that_is_not_gemmas_is_named(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "m.gguf").tokenizer_bytes()


def test_every_cut_and_changed_file_is_an_error_of_ours(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    path, source = tmp_path / "hurt.gguf", random.Random(0)
    header = data.index(b"output_norm.weight")
    cuts = [0, 3, 4, 7, 8, 12, 20, 24, 25, 40, header, *source.sample(range(header), 20), len(data) - 4096]
    for length in cuts:
        path.write_bytes(data[:length])
        assert "GGUF" in refusal(path) or "download it again" in refusal(path) or "no known" in refusal(path)
    for _ in range(150):
        hurt = bytearray(data)
        for position in source.sample(range(700), 2):
            hurt[position] = source.randrange(256)
        path.write_bytes(hurt)
        with contextlib.suppress(CgLocalError):
            open_checkpoint(path).tokenizer_bytes()


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (4, b"\x01\0\0\0", "GGUF version 1; needed is 2 or 3"),
        (4, b"\0\0\0\x03", "a big-endian GGUF file"),
        (8, b"\xff" * 8, "claims 18,446,744,073,709,551,615 tensors"),
    ],
)
def test_a_file_of_another_version_or_byte_order_is_named(
    tmp_path: Path, position: int, value: bytes, words: str
) -> None:
    write_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[position : position + len(value)] = value
    (tmp_path / "m.gguf").write_bytes(data)
    assert words in refusal(tmp_path / "m.gguf")


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    start = data.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    data[start : start + 4] = (16).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    assert "blk.0.attn_q.weight is stored in type IQ2_XXS; cg-local reads F32, F16," in refusal(tmp_path / "m.gguf")


def test_a_file_cut_after_opening_and_values_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kind="F16")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    start = GgufContainer(tmp_path / "m.gguf").tensors["token_embd.weight"].offset
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(start + 2 * 256 * 5)
        file.write(b"\xff\x7f")
    with pytest.raises(CheckpointError, match="NaN or infinity in row 5"):
        checkpoint.tensor(EMBEDDING)
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.truncate(start)
    with pytest.raises(CheckpointError, match="which shrank"):
        checkpoint.tensor(EMBEDDING)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_stays_at_one_slab(tmp_path: Path) -> None:
    left_out = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
    write_gguf(tmp_path / "m.gguf", {**MQA, "vocab_size": 40_000}, kind="Q8_0", left_out=left_out)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")  # 41 MB as float32
    checkpoint.rows(EMBEDDING, 0, 1)  # imports the package
    before, growth = resident_bytes(), 0
    for start in range(0, 40_000, 1000):
        checkpoint.rows(EMBEDDING, start, start + 1000)  # 1 MB as float32
        growth = max(growth, resident_bytes() - before)
    assert growth < 8 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_only_quantized_files_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "exact.gguf")
    write_gguf(tmp_path / "rounded.gguf", kind="Q4_K")
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "gguf":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert open_checkpoint(tmp_path / "exact.gguf").tensor(EMBEDDING).shape == (768, 256)
    with pytest.raises(CheckpointError, match=r"pip install 'cg-local\[gguf\]'"):
        open_checkpoint(tmp_path / "rounded.gguf").tensor(EMBEDDING)
