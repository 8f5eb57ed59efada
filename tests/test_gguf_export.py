"""Published weights as GGUF: what is written is what was stored, under llama.cpp's names and conventions."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from toy_models import MQA, write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.checkpoint.gguf_names import gguf_name
from cg_local.checkpoint.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    sentencepiece_pieces,
)
from cg_local.errors import ExportError
from cg_local.gguf_export import SOURCES_KEY, export_gguf, source_digests
from cg_local.packing import float32_from_bfloat16

gguf = pytest.importorskip("gguf")


@pytest.fixture
def source(toy_checkpoint: Callable[[str], Path]) -> Path:
    return toy_checkpoint("mqa")


def read(path: Path) -> Any:
    return gguf.GGUFReader(path)


def values_of(tensor: Any) -> np.ndarray:
    """Return a tensor of a read file as float32 with its rows as axis 0."""
    shape = tuple(int(length) for length in reversed(tensor.shape))
    if tensor.tensor_type.name == "BF16":
        return float32_from_bfloat16(np.asarray(tensor.data).view(np.uint16)).reshape(shape)
    return np.asarray(tensor.data).astype(np.float32).reshape(shape)


@pytest.mark.parametrize("is_widened", [False, True])
def test_every_tensor_has_the_stored_values_and_gains_hold_one_more(
    source: Path, tmp_path: Path, is_widened: bool
) -> None:
    checkpoint = open_checkpoint(source)
    export_gguf(checkpoint, tmp_path / "toy.gguf", is_widened=is_widened)
    found = {tensor.name: tensor for tensor in read(tmp_path / "toy.gguf").tensors}

    assert found.keys() == {gguf_name(name) for name in checkpoint.tensor_names}
    for name in checkpoint.tensor_names:
        stored = checkpoint.tensor(name)
        is_gain = stored.ndim == 1
        tensor = found[gguf_name(name)]
        assert tensor.tensor_type.name == ("F32" if is_gain or is_widened else "BF16")
        np.testing.assert_array_equal(values_of(tensor), stored + np.float32(1) if is_gain else stored)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_weights_keep_the_type_they_are_published_in(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "source"
    write_toy_checkpoint(folder, MQA, dtype=dtype, has_tokenizer=True)
    export_gguf(open_checkpoint(folder), tmp_path / "toy.gguf")
    found = {tensor.name: tensor for tensor in read(tmp_path / "toy.gguf").tensors}

    assert found["blk.1.ffn_down.weight"].tensor_type.name == dtype
    expected = open_checkpoint(folder).tensor("model.layers.1.mlp.down_proj.weight")
    np.testing.assert_array_equal(values_of(found["blk.1.ffn_down.weight"]), expected)


def test_metadata_is_what_llama_cpp_reads(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    export_gguf(checkpoint, tmp_path / "toy.gguf")
    fields = read(tmp_path / "toy.gguf").fields
    found = {name: field.contents() for name, field in fields.items() if not name.startswith("tokenizer.ggml.t")}

    expected = {
        "general.architecture": "gemma",
        "general.file_type": 32,
        "gemma.context_length": 1024,
        "gemma.embedding_length": 256,
        "gemma.block_count": 2,
        "gemma.feed_forward_length": 512,
        "gemma.attention.head_count": 4,
        "gemma.attention.head_count_kv": 1,
        "gemma.attention.key_length": 64,
        "gemma.attention.value_length": 64,
        "gemma.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 107,
        "tokenizer.ggml.fim_pre_token_id": 67,
        "tokenizer.ggml.fim_mid_token_id": 68,
        "tokenizer.ggml.fim_suf_token_id": 69,
        "tokenizer.ggml.fim_sep_token_id": 70,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert expected.items() <= found.items()
    assert found["gemma.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert json.loads(found[SOURCES_KEY]) == source_digests(checkpoint)


def test_vocabulary_is_the_tokenizers_with_control_ids_and_real_spaces(source: Path, tmp_path: Path) -> None:
    export_gguf(open_checkpoint(source), tmp_path / "toy.gguf")
    fields = read(tmp_path / "toy.gguf").fields
    tokens, kinds = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    processor = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))

    num_pieces = processor.vocab_size()
    assert len(tokens) == len(kinds) == len(scores) == 768
    for token_id in range(num_pieces):
        piece = processor.id_to_piece(token_id)
        assert tokens[token_id] == (piece.replace("\u2581", " ") if kinds[token_id] == USER_DEFINED else piece)
        assert scores[token_id] == pytest.approx(processor.get_score(token_id))
    assert [kinds[token_id] for token_id in (0, 3, 67, 107, 108, 139)] == [CONTROL, UNKNOWN, CONTROL, CONTROL] + [
        USER_DEFINED
    ] * 2
    assert kinds[processor.piece_to_id("<0x41>")] == BYTE
    assert tokens[139] == "  "
    assert kinds[num_pieces:] == [UNUSED] * (768 - num_pieces)


def test_pieces_of_a_sentencepiece_model_are_those_of_its_processor(source: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    pieces = list(sentencepiece_pieces((source / "tokenizer.model").read_bytes()))

    assert [piece.text.decode() for piece in pieces] == [processor.id_to_piece(i) for i in range(len(pieces))]
    assert len(pieces) == processor.vocab_size()
    assert [piece.kind == BYTE for piece in pieces] == [processor.is_byte(i) for i in range(len(pieces))]
    assert NORMAL in {piece.kind for piece in pieces}


def test_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path / "source", MQA, has_tokenizer=False)
    with pytest.raises(ExportError, match=r"no tokenizer\.model"):
        export_gguf(open_checkpoint(tmp_path / "source"), tmp_path / "toy.gguf")


def test_missing_package_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ExportError, match=r"pip install .cg-local\[gguf\]"):
        export_gguf(open_checkpoint(source), tmp_path / "toy.gguf")


def test_failed_export_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(open_checkpoint(source), tmp_path / "toy.gguf", on_progress=stop)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ExportError, match="cannot be written"):
        export_gguf(open_checkpoint(source), tmp_path / "no" / "folder" / "toy.gguf")
