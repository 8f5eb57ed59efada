"""Models whose body is in each format with a codebook: written, opened and computed by the whole engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_engines import (
    DequantizedFolder,
    engine_of,
    generate,
    linear_of_rounded_activations,
    relative_error,
    toy_prompt,
)

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.model_folder import open_model_folder
from cg_local.packing import dequantize
from cg_local.quant import quantize, schemes
from cg_local.sampling import logprob_of

# Largest relative error energy on normal weights, with room for the few groups of a toy: 23.3 and 16 dB.
LIMITS = {"c4g16": 4.7e-3, "c3g32": 2.5e-2}
PROMPT = toy_prompt(70)


@pytest.fixture(scope="module", params=LIMITS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(format: str, tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Callable[[str], Path]) -> Path:
    path = tmp_path_factory.mktemp("models") / format
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schemes.SCHEME_FORMATS, "q4", {**schemes.SCHEME_FORMATS["q4"], "": format})
        quantize(toy_checkpoint("mqa"), path, "q4")
    return path


def test_folder_holds_the_checkpoint_within_the_error_of_its_format(
    format: str, folder: Path, toy_checkpoint: Callable[[str], Path]
) -> None:
    opened, checkpoint = open_model_folder(folder, verify=True), open_checkpoint(toy_checkpoint("mqa"))
    matrices = {name: matrix for name, matrix in opened.matrices.items() if matrix.format == format}
    assert len(matrices) == 10
    for name, matrix in matrices.items():
        x = checkpoint.tensor(name)
        error = ((dequantize(matrix) - x).astype(float) ** 2).sum() / (x.astype(float) ** 2).sum()
        assert error <= LIMITS[format]
        assert opened.metadata["quality"][name]["relative_error"] == pytest.approx(error, rel=1e-4)


def test_engine_equals_the_reference_on_dequantized_weights_and_rounded_activations(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, source = engine_of(folder, kv_dtype="float32"), DequantizedFolder(folder)
    prompts = [[2 + seed, *toy_prompt(5, seed)[1:]] for seed in range(12)]
    monkeypatch.setattr(reference, "linear", linear_of_rounded_activations)

    errors = [relative_error(reference.logits(source, prompt), engine.logits(prompt)) for prompt in prompts]

    # As in test_model.py: float32 rounding, but where it tips an activation next to a tie into the neighbouring code.
    assert sum(error < 1e-5 for error in errors) >= 6
    assert max(errors) < 1.6e-2


@pytest.mark.parametrize("chunk", [1, 6, 7])
def test_prefill_in_chunks_equals_prefill_at_once_bit_for_bit(folder: Path, chunk: int) -> None:
    found = engine_of(folder, prefill_chunk=chunk).logits(PROMPT)

    np.testing.assert_array_equal(found, engine_of(folder).logits(PROMPT))


def test_decoding_gives_the_logprobs_of_prefilling_the_same_text_bit_for_bit(folder: Path) -> None:
    engine = engine_of(folder)

    decoded = generate(engine, PROMPT[:50], max_tokens=8, temperature=1.5, seed=1)

    rows = engine.logits(decoded.token_ids)[49:-1]
    assert decoded.logprobs == [logprob_of(row, id) for row, id in zip(rows, decoded.completion_ids, strict=True)]
