"""The engine's benchmarks: figures against hand-computed values, the cached reference against the reference."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cg_local.engine
from cg_local import kernels, reference
from cg_local.bench import cards
from cg_local.bench.figures import bytes_per_token, spread
from cg_local.bench.prompt_lookup import ScriptedModel
from cg_local.config import EngineConfig
from cg_local.errors import CgLocalError
from cg_local.model_folder import open_model_folder

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import engine_parity
import model_loading
import prompt_lookup
from reference_generation import CachedReference

FolderMaker = Callable[[str, str], Path]


def log(*probabilities: float) -> np.ndarray:
    """Return logits whose softmax has these values."""
    return np.log(np.array(probabilities, np.float32))


def test_parity_figures_equal_hand_computed_values() -> None:
    expected = np.stack([log(0.5, 0.25, 0.25), log(0.5, 0.25, 0.25)])
    found = np.stack([log(0.25, 0.5, 0.25), log(0.5, 0.25, 0.25)])

    parity = engine_parity.measure_parity([expected], [found], [[0, 1]])

    # 0.5 ln(0.5/0.25) + 0.25 ln(0.25/0.5) = 0.25 ln 2 at the first position, 0 at the second.
    assert parity.kl_max == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert parity.kl_mean == pytest.approx(0.125 * math.log(2), rel=1e-6)
    assert parity.top1_agreement == 0.5
    assert parity.margin_max == pytest.approx(math.log(2), rel=1e-6)
    assert parity.logit_difference_max == pytest.approx(1.0)  # ln 2 over a range of ln 2
    assert parity.perplexity_reference == pytest.approx(4.0)
    assert parity.perplexity_engine == pytest.approx(2.0)


def test_parity_does_not_depend_on_a_shift_of_the_logits() -> None:
    logits = np.array([[1.0, 2.0, 300.0]], np.float32)

    assert engine_parity.measure_parity([logits], [logits + 64], None).kl_max == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
def test_parity_run_on_a_toy_model(toy_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(toy_checkpoint("mqa")), "--tokens", "64", "--window", "32", "--schemes", "bf16,q4"]

    assert engine_parity.main([*arguments, "--weights-alone"]) == 0
    rows = json.loads(capsys.readouterr().out)["parity"]

    ways = ("reference", "engine, float32", "engine, float16", "engine, int8")
    assert [(row["scheme"], row["computed_by"]) for row in rows] == [(s, way) for s in ("bf16", "q4") for way in ways]
    assert rows[0]["num_tokens"] == 64
    assert rows[0]["kl_max"] < 1e-9
    assert rows[1]["kl_mean"] < 1e-8 < rows[4]["kl_mean"]


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_cached_reference_equals_reference(family: str, toy_checkpoint: Callable[[str], Path]) -> None:
    folder = toy_checkpoint(family)
    token_ids = [2, *range(300, 340)]
    model = CachedReference(folder)
    expected = reference.logits(folder, token_ids)

    found = [model.start(token_ids[:30])] + [model.append(token_id) for token_id in token_ids[30:]]

    # float32 sums in another order: a few units in the last place of the logits' range.
    tolerance = 2e-6 * float(expected.max() - expected.min())
    np.testing.assert_allclose(np.stack(found), expected[29:], rtol=0, atol=tolerance)


def test_cached_reference_generates_greedily(toy_checkpoint: Callable[[str], Path]) -> None:
    folder = toy_checkpoint("mqa")
    model, tokens = CachedReference(folder), [2, 300, 301]

    answer, reason = model.generate(tokens, 4, ())
    for token_id in answer:
        assert token_id == int(np.argmax(reference.logits(folder, tokens)[-1]))
        tokens.append(token_id)

    assert (len(answer), reason) == (4, "max_tokens")
    assert model.generate([2, 300, 301], 4, answer[:1]) == ([], "stop_id")


@pytest.mark.parametrize("scheme", ["bf16", "q4"])
def test_bytes_per_token_are_the_files_tensors_and_the_cache(scheme: str, toy_folder: FolderMaker) -> None:
    folder = open_model_folder(toy_folder("mqa", scheme))
    matrices = sum(part.nbytes for matrix in folder.matrices.values() for part in matrix.parts.values())
    gains = 4 * 256 * (2 * 2 + 1)
    bytes_per_value = {"bf16": 4, "q4": 2}[scheme]
    cache = 10 * 2 * 2 * 64 * bytes_per_value  # tokens, K and V, layers, head_dim of one head

    assert bytes_per_token(folder, 10, EngineConfig().kv_dtype_for(scheme)) == matrices + gains + cache


def test_machine_card_names_machine_and_versions() -> None:
    card = cards.machine_card()

    assert card["instruction_set"] == kernels.instruction_set_name()
    assert isinstance(card["num_cores"], int)
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_model_names_and_folders_are_found_or_refused(toy_folder: FolderMaker) -> None:
    folder = toy_folder("mqa", "q4")

    assert model_loading.model_path(str(folder)) == folder
    with pytest.raises(CgLocalError, match="give a folder or `nano`"):
        model_loading.model_path("no-such-model")
    with pytest.raises(CgLocalError, match="of scheme q4, asked for is q8"):
        model_loading.quantized_folder(folder, "q8").__enter__()


def test_quantized_folder_is_kept_where_asked(tmp_path: Path, toy_checkpoint: Callable[[str], Path]) -> None:
    with model_loading.quantized_folder(toy_checkpoint("mqa"), "q8", tmp_path) as first:
        assert open_model_folder(first).scheme == "q8"
    modified = (first / "model.safetensors").stat().st_mtime_ns

    with model_loading.quantized_folder(toy_checkpoint("mqa"), "q8", tmp_path) as second:
        assert (second, (second / "model.safetensors").stat().st_mtime_ns) == (first, modified)


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """One edit of a text that is long enough to be guessed from."""
    before = "".join(f"line_{number} = {number}\n" for number in range(9))
    tmp_path.joinpath("small.before.txt").write_text(before)
    tmp_path.joinpath("small.after.txt").write_text(before.replace("line_4", "row_4"))
    return tmp_path


def test_prompt_lookup_run_writes_the_edit_with_fewer_steps(
    edits: Path, toy_folder: FolderMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cg_local.engine, "best_draft_length", lambda *arguments: 15)
    folder = str(toy_folder("mqa", "q4"))

    assert prompt_lookup.main(["--model", folder, "--tokenizer", folder, "--edits", str(edits), "--repeat", "2"]) == 0
    figure = json.loads(capsys.readouterr().out)["edits"]["small"]

    assert figure["tokens_per_step"] > 2
    assert 0.2 < figure["accepted_share"] < 1
    assert figure["tokens_per_step"] <= figure["rows_per_step"]


def test_scripted_model_says_what_it_is_told_and_nothing_else_is_accepted(
    edits: Path, toy_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model_loading.load(toy_folder("mqa", "q4"), EngineConfig(max_context=16))
    edit = prompt_lookup.read_edits(edits, loaded.tokenizer, 20)[0]
    assert len(edit.after) == 20
    engine = prompt_lookup.scripted_engine(loaded.folder, edit, 1)
    assert prompt_lookup.run(engine, edit, 0).num_steps == 19

    monkeypatch.setattr(ScriptedModel, "forward", model_loading.Model.forward)
    with pytest.raises(CgLocalError, match="small: the engine wrote other tokens than the edit's"):
        prompt_lookup.run(engine, edit, 0)
