"""States computed layer by layer for all sequences equal the reference's for each sequence alone, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.model_folder import open_model_folder
from cg_local.quant import hidden_states
from cg_local.quant.hidden_states import final_states

Floats = NDArray[np.float32]
SEQUENCES = [[2, 5, 9, 700, 9, 12, 13], [2], [2, 400, 401, 402, 2, 767]]


def expected_states(source: reference.TensorSource) -> list[Floats]:
    """Return each sequence's states, computed alone."""
    found = []
    for ids in SEQUENCES:
        *_, last = reference.residual_stream(source, ids)
        found.append(reference.rms_norm(last, source.tensor("model.norm.weight"), source.config.rms_norm_eps))
    return found


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_states_equal_the_references(family: str, toy_checkpoint: Callable[[str], Path]) -> None:
    source = open_checkpoint(toy_checkpoint(family))
    for found, expected in zip(final_states(source, SEQUENCES), expected_states(source), strict=True):
        assert np.array_equal(found, expected)


def test_states_of_a_model_folder_are_those_of_its_dequantized_weights(
    toy_folder: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_states, "SLAB_BYTES", 4 * 256 * 50)  # the embedding in slabs that end inside of a tile
    source = DequantizedFolder(open_model_folder(toy_folder("mqa", "q4")))
    for found, expected in zip(final_states(source, SEQUENCES), expected_states(source), strict=True):
        assert np.array_equal(found, expected)


def test_each_tensor_is_read_once(toy_checkpoint: Callable[[str], Path]) -> None:
    opened = open_checkpoint(toy_checkpoint("mqa"))
    read: list[str] = []

    class Counting:
        config, tensor_names, rows = opened.config, opened.tensor_names, staticmethod(opened.rows)

        def tensor(self, name: str) -> Floats:
            read.append(name)
            return opened.tensor(name)

    final_states(Counting(), SEQUENCES)
    assert sorted(read) == sorted(name for name in opened.config.tensor_shapes() if "embed" not in name)


def test_observer_sees_the_inputs_of_every_matrix(toy_checkpoint: Callable[[str], Path]) -> None:
    source = open_checkpoint(toy_checkpoint("mqa"))
    seen: dict[str, list[Floats]] = {}
    final_states(source, SEQUENCES, observe=lambda name, inputs: seen.update({name: inputs}))
    matrices = [
        name for name, shape in source.config.tensor_shapes().items() if len(shape) == 2 and "embed" not in name
    ]
    assert sorted(seen) == sorted(matrices)
    for name, inputs in seen.items():
        assert [len(x) for x in inputs] == [len(ids) for ids in SEQUENCES]
        assert {x.shape[1] for x in inputs} == {source.config.tensor_shapes()[name][1]}
    # What the first layer's queries see is the normed embedding.
    table = source.tensor("model.embed_tokens.weight")
    x = reference.embed(table, np.array(SEQUENCES[0]), "exact")
    gain = source.tensor("model.layers.0.input_layernorm.weight")
    expected = reference.rms_norm(x, gain, source.config.rms_norm_eps)
    assert np.array_equal(seen["model.layers.0.self_attn.q_proj.weight"][0], expected)


def test_nothing_gives_nothing(toy_checkpoint: Callable[[str], Path]) -> None:
    assert final_states(open_checkpoint(toy_checkpoint("mqa")), []) == []
