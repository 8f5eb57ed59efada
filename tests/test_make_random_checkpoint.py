"""The random checkpoints of the benchmarks are complete, shaped as published, and the same everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_models import MQA, normal_like

from cg_local.checkpoint import open_checkpoint
from cg_local.packing import bfloat16_from_float32, float32_from_bfloat16

pytest.importorskip("google.protobuf", reason="the synthetic tokenizer needs protobuf")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import make_random_checkpoint as maker
import synthetic_tokenizer
from sentencepiece import SentencePieceProcessor

TINY: dict[str, Any] = {**maker.CONFIGS["2b"], **{key: MQA[key] for key in ("hidden_size", "intermediate_size")}}
TINY |= {"vocab_size": 2000, "num_hidden_layers": 2, "head_dim": 32}


@pytest.fixture(scope="module")
def full_size() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=synthetic_tokenizer.synthetic_tokenizer())


def test_random_checkpoint_opens_and_repeats_bit_by_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        maker.write_checkpoint(tmp_path / name, TINY, seed=3)

    assert open_checkpoint(tmp_path / "a").config.num_layers == 2
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_random_checkpoint_in_shards_equals_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.write_checkpoint(tmp_path / "one", TINY, seed=3)
    monkeypatch.setattr(maker, "SHARD_BYTES", 1_500_000)
    maker.write_checkpoint(tmp_path / "many", TINY, seed=3)
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")

    assert len(many.source_files) > len(one.source_files) + 1
    for name in one.tensor_names:
        np.testing.assert_array_equal(one.tensor(name), many.tensor(name))


def test_random_checkpoint_of_fewer_layers_holds_the_first_ones(tmp_path: Path) -> None:
    maker.write_checkpoint(tmp_path / "two", TINY, seed=3)
    maker.write_checkpoint(tmp_path / "one", {**TINY, "num_hidden_layers": 1}, seed=3)
    two, one = open_checkpoint(tmp_path / "two"), open_checkpoint(tmp_path / "one")

    for name in one.tensor_names:
        np.testing.assert_array_equal(one.tensor(name), two.tensor(name))


def test_random_slabs_continue_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "SLAB_VALUES", 1000)
    name, shape = "model.layers.0.mlp.up_proj.weight", (70, 64)
    found = np.concatenate(list(maker.random_slabs(5, name, shape)))

    np.testing.assert_allclose(found, normal_like(5, name, shape).ravel() / 8, atol=1e-6)
    assert float32_from_bfloat16(bfloat16_from_float32(found)).std() == pytest.approx(1 / 8, rel=0.02)


def test_random_checkpoint_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").mkdir()

    assert maker.main([str(tmp_path / "kept"), "--layers", "1"]) == 1
    assert "exists; name a new folder or remove it" in capsys.readouterr().err
    assert not list((tmp_path / "kept").iterdir())


def test_synthetic_tokenizer_has_codegemmas_layout(full_size: SentencePieceProcessor) -> None:
    layout = {
        0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 67: "<|fim_prefix|>", 68: "<|fim_middle|>",
        69: "<|fim_suffix|>", 70: "<|file_separator|>", 106: "<start_of_turn>", 107: "<end_of_turn>", 108: "\n",
        138: "\n" * 31, 139: "\u2581" * 2, 168: "\u2581" * 31, 204: "<s>", 226: "<0x09>", 472: "<0xFF>",
        235248: "\u2581",
    }  # fmt: skip

    assert {token_id: full_size.id_to_piece(token_id) for token_id in layout} == layout
    assert len({full_size.id_to_piece(token_id) for token_id in range(256_000)}) == 256_000


def test_synthetic_tokenizer_encodes_every_text(full_size: SentencePieceProcessor) -> None:
    text = "def f(self):\n\treturn  [name for name in range(10)]\r\n\0 ü 𝄞 生"

    assert full_size.decode(full_size.encode(text)) == text
    assert [full_size.id_to_piece(token_id) for token_id in full_size.encode("return self")] == ["return", "\u2581self"]
