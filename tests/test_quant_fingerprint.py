"""A fingerprint tells weights apart, and is the same wherever the same weights lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_models import MHA, MQA, toy_weights, write_toy_checkpoint

from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig
from cg_local.models import EMBEDDED, embedded_checkpoint
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.importance import FILE_NAME, ImportancePack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("toys") / "source", has_tokenizer=True)


def test_it_is_the_same_in_every_container(source: Path, tmp_path: Path) -> None:
    expected = fingerprint(open_checkpoint(source))
    assert len(expected) == 64
    shards = write_toy_checkpoint(tmp_path / "shards", num_shards=3, lm_head="equal")
    assert fingerprint(open_checkpoint(shards)) == expected
    stored = {name: open_checkpoint(source).tensor(name) for name in open_checkpoint(source).tensor_names}
    wide = write_toy_checkpoint(tmp_path / "wide", dtype="F32", weights=stored)
    assert fingerprint(open_checkpoint(wide)) == expected


def test_it_is_the_same_in_a_gguf_file_even_for_gains_next_to_one(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from cg_local.gguf_export import export_gguf

    weights = toy_weights(ModelConfig.from_dict(MQA, "toy"))
    weights["model.norm.weight"][:4] = (1e-9, -1e-9, 0.0, -0.0)
    source = write_toy_checkpoint(tmp_path / "source", weights=weights, has_tokenizer=True)
    export_gguf(open_checkpoint(source), tmp_path / "toy.gguf")
    assert fingerprint(open_checkpoint(tmp_path / "toy.gguf")) == fingerprint(open_checkpoint(source))


def test_other_weights_have_another_one(source: Path, tmp_path: Path) -> None:
    others = [
        write_toy_checkpoint(tmp_path / "seed", seed=1),
        write_toy_checkpoint(tmp_path / "mha", MHA),
        write_toy_checkpoint(tmp_path / "head", lm_head="different"),
    ]
    config = ModelConfig.from_dict(MQA, "toy")
    for number, name in enumerate(config.tensor_shapes()):
        weights = toy_weights(config)
        weights[name] = weights[name] * np.float32(1.25)  # as a fine-tune of this tensor alone
        others.append(write_toy_checkpoint(tmp_path / str(number), weights=weights))
    found = {fingerprint(open_checkpoint(folder)) for folder in (source, *others)}
    assert len(found) == 1 + len(others)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_packs_belong_to_the_embedded_weights(name: str) -> None:
    folder = embedded_checkpoint(name)
    assert ImportancePack.load(folder / FILE_NAME).weights == fingerprint(open_checkpoint(folder))
