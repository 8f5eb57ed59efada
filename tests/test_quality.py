"""A comparison's parts: models as they are opened, stored states, errors of matrices, figures of known models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_models import MHA, write_toy_checkpoint

import cg_local
from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.errors import QualityError
from cg_local.gguf_export import export_gguf
from cg_local.model_folder import open_model_folder
from cg_local.quality.engines import EngineSettings, engine_of
from cg_local.quality.models import FOLDER, GGUF, PUBLISHED, open_compared, open_reference
from cg_local.quality.places import GROUPS, Places
from cg_local.quality.plot import write_plot
from cg_local.quality.report import END_TO_END, FORMAT_ONLY, Options, measure, reference_states
from cg_local.quality.stored_states import read_states, states_key, write_states
from cg_local.quality.table import report
from cg_local.quality.tensor_errors import tensor_errors, worst_tensors
from cg_local.quant.corpora import Corpus
from cg_local.quant.corpus_files import TextFile
from cg_local.quant.corpus_windows import Window

Floats = NDArray[np.float32]
Makers = Callable[[str], Path]


def silent(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def places() -> Places:
    """Return four windows of random tokens of three files."""
    random = np.random.default_rng(0)
    windows = []
    kinds = (("code", "a.py", 1), ("fim", "b.c", 20), ("prose", "c.md", 1), ("chat", "a.py", 10))
    for number, (kind, name, scored_from) in enumerate(kinds):
        token_ids = (2, *map(int, random.integers(108, 768, 23 + number)))
        windows.append(Window(token_ids, kind, f"{name}:{number + 1}", scored_from))  # type: ignore[arg-type]
    files = [TextFile(name, name * 10, "MIT", "python", 1) for name in ("a.py", "b.c", "c.md")]
    return Places(Corpus(tuple(windows), tuple(files)))


def plain_losses(logits: list[Floats], places: Places) -> list[float]:
    """Return -ln of the true token's probability at every place, the plain way."""
    losses = []
    for rows, window in zip(logits, places.windows, strict=True):
        for position in range(window.scored_from, len(window.token_ids)):
            z = rows[position - 1].astype(np.float64)
            losses.append(float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[window.token_ids[position]]))
    return losses


def reference_logits(source: reference.TensorSource, places: Places) -> list[Floats]:
    """Return the reference's logits of every window."""
    return [reference.logits(source, window.token_ids) for window in places.windows]


def value(document: dict[str, Any], group: str, name: str, comparison: int = 0, model: int = 0) -> float:
    """Return a figure of a document."""
    return float(document["models"][model]["comparisons"][comparison]["groups"][group][name]["value"])


def test_places_are_the_tokens_behind_the_windows_starts(places: Places) -> None:
    assert len(places.true_ids) == sum(len(w.token_ids) - w.scored_from for w in places.windows)
    assert places.true_ids[0] == places.windows[0].token_ids[1]
    assert list(dict.fromkeys(places.documents)) == [0, 1, 2]  # the first and the last window are of one file
    assert places.mask("code+fim").sum() == 23 + 5
    rows = places.scored([np.arange(len(w.token_ids))[:, None].astype(np.float32) for w in places.windows])
    assert rows[23:28, 0].tolist() == [19, 20, 21, 22, 23]


def test_published_weights_against_themselves_differ_by_nothing(toy_checkpoint: Makers, places: Places) -> None:
    opened = open_reference("toy", toy_checkpoint("mqa"))
    model = open_compared(toy_checkpoint("mqa"), opened)
    document = measure(opened, places, [model], Options(), say=silent)
    for group in GROUPS:
        assert value(document, group, "kl_max") < 1e-9
        assert value(document, group, "top1_agreement") == 1
        assert value(document, group, "ln_perplexity_ratio") == 0


def test_format_only_scores_the_dequantized_weights(
    toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path], places: Places
) -> None:
    opened = open_reference("toy", toy_checkpoint("mqa"))
    model = open_compared(toy_folder("mqa", "q4"), opened)
    document = measure(opened, places, [model], Options(), say=silent)
    losses = plain_losses(reference_logits(DequantizedFolder(open_model_folder(model.path)), places), places)
    assert value(document, "all", "perplexity") == pytest.approx(np.exp(np.mean(losses)), rel=1e-6)
    expected = np.exp(np.mean(plain_losses(reference_logits(opened.checkpoint, places), places)))
    assert value(document, "all", "reference_perplexity") == pytest.approx(expected, rel=1e-6)
    assert value(document, "all", "kl_mean") > 1e-5
    assert document["models"][0]["comparisons"][0]["comparison"] == FORMAT_ONLY


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_end_to_end_scores_the_engines_own_logits(
    toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path], places: Places, kv_dtype: str
) -> None:
    opened = open_reference("toy", toy_checkpoint("mqa"))
    model = open_compared(toy_folder("mqa", "q8"), opened)
    document = measure(opened, places, [model], Options(kv_dtypes=(kv_dtype,)), say=silent)
    engine = cg_local.load(model.path, kv_dtype=kv_dtype)
    losses = plain_losses([engine.logits(window.token_ids) for window in places.windows], places)
    assert value(document, "all", "perplexity", comparison=1) == pytest.approx(np.exp(np.mean(losses)), rel=1e-9)
    assert document["models"][0]["comparisons"][1]["comparison"] == END_TO_END


def test_gguf_is_scored_by_its_decoded_weights(tmp_path: Path, places: Places) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf_files import write_gguf

    stored = write_gguf(tmp_path / "toy-q8_0.gguf", kind="Q8_0")
    opened = open_reference("toy", write_toy_checkpoint(tmp_path / "toy", has_tokenizer=True))
    model = open_compared(tmp_path / "toy-q8_0.gguf", opened)
    document = measure(opened, places, [model], Options(), say=silent)
    values = {
        name: tensor if tensor.ndim == 1 else gguf.quants.dequantize(tensor, gguf.GGMLQuantizationType.Q8_0)
        for name, tensor in stored.items()
    }

    class Decoded:
        config, tensor_names = opened.checkpoint.config, tuple(values)

        def tensor(self, name: str) -> Floats:
            return np.asarray(values[name], np.float32)

    # Random blocks make huge weights, whose perplexity is beyond float64.
    losses, plain = (plain_losses(reference_logits(each, places), places) for each in (Decoded(), opened.checkpoint))
    expected = np.mean(losses) - np.mean(plain)
    assert value(document, "all", "ln_perplexity_ratio") == pytest.approx(expected, rel=1e-6)
    assert model.kind == GGUF
    assert len(document["models"][0]["comparisons"]) == 1


def test_sizes_are_those_of_the_tensors(tmp_path: Path, toy_folder: Callable[[str, str], Path]) -> None:
    pytest.importorskip("gguf")
    source = write_toy_checkpoint(tmp_path / "toy", has_tokenizer=True)
    opened = open_reference("toy", source)
    export_gguf(opened.checkpoint, tmp_path / "toy.gguf")
    num_weights = sum(int(np.prod(shape)) for shape in opened.checkpoint.config.tensor_shapes().values())
    gains = 5 * 256
    published, gguf, folder = (
        open_compared(path, opened) for path in (source, tmp_path / "toy.gguf", toy_folder("mqa", "q8"))
    )
    assert (published.kind, gguf.kind, folder.kind) == (PUBLISHED, GGUF, FOLDER)
    assert published.num_weights == gguf.num_weights == folder.num_weights == num_weights
    assert published.num_bytes == 2 * num_weights
    assert gguf.num_bytes == 2 * num_weights + 2 * gains  # norms are float32 there
    assert folder.num_bytes == (num_weights - gains) * 8.25 / 8 + 4 * gains
    assert published.bits_per_weight == 16


def test_matrix_error_is_the_trace_formula(
    toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path], places: Places
) -> None:
    source = open_checkpoint(toy_checkpoint("mqa"))
    model = DequantizedFolder(open_model_folder(toy_folder("mqa", "q4")))
    [found] = tensor_errors(source, [model], places.windows)
    # H of the first layer's gate, from the reference's own steps.
    hessian = np.zeros((256, 256))
    for window in places.windows:
        embedded, *_ = reference.residual_stream(source, window.token_ids)
        cos, sin = reference.rotary_table(np.arange(len(embedded)), 64, 10000.0)
        x = embedded + reference.attention_branch(source, 0, embedded, cos, sin)
        h = reference.rms_norm(x, source.tensor("model.layers.0.post_attention_layernorm.weight"), 1e-6)[1:]
        hessian += h.T.astype(np.float64) @ h
    name = "model.layers.0.mlp.gate_proj.weight"
    weights = source.tensor(name).astype(np.float64)
    change = model.tensor(name) - weights
    expected = np.trace(change @ hessian @ change.T) / np.trace(weights @ hessian @ weights.T)
    assert found[name] == pytest.approx(expected, rel=1e-4)
    matrices = [name for name, shape in source.config.tensor_shapes().items() if len(shape) == 2]
    assert sorted(found) == sorted(matrices)


def test_worst_matrices_come_first() -> None:
    errors = {"b": 0.5, "a": 0.5, "c": 0.1, "d": 0.9}
    assert worst_tensors(errors, 3) == [("d", 0.9), ("a", 0.5), ("b", 0.5)]


def test_stored_states_serve_again_and_only_their_own_texts(
    tmp_path: Path, toy_checkpoint: Makers, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, file = open_reference("toy", toy_checkpoint("mqa")), tmp_path / "states.npz"
    first = reference_states(opened, places, file, silent)

    def fail(*arguments: object, **keywords: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("cg_local.quality.report.final_states", fail)
    assert np.array_equal(reference_states(opened, places, file, silent), first)
    fewer = Places(Corpus(places.windows[:2], places.corpus.files))
    with pytest.raises(QualityError, match="of other weights or other texts"):
        reference_states(opened, fewer, file, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["states.npz"]


def test_damaged_states_are_refused_where_named_and_made_again_in_the_cache(
    tmp_path: Path, toy_checkpoint: Makers, places: Places
) -> None:
    opened, file = open_reference("toy", toy_checkpoint("mqa")), tmp_path / "states.npz"
    file.write_bytes(b"PK no archive")
    with pytest.raises(QualityError, match="damaged"):
        reference_states(opened, places, file, silent)
    first = reference_states(opened, places, None, silent)
    from cg_local.model_store import cache_folder

    [stored] = cache_folder().joinpath("quality").iterdir()
    stored.write_bytes(b"nothing")
    assert np.array_equal(reference_states(opened, places, None, silent), first)
    assert read_states(stored, states_key(opened.digest(), places.corpus.digest)) is not None


def test_states_that_cannot_be_written_are_an_error_where_named(
    tmp_path: Path, toy_checkpoint: Makers, places: Places
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QualityError, match="cannot be written"):
        write_states(tmp_path / "file" / "states.npz", "key", np.zeros((1, 1), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: set_json(folder / "tokenizer_config.json", add_bos_token=False), "add_bos_token = false"),
        (lambda folder: set_json(folder / "config.json", bos_token_id=1), "bos_token_id 1, the tokenizer 2"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer.model"),
    ],
)
def test_reference_without_bos_or_tokenizer_is_refused(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = write_toy_checkpoint(tmp_path / "toy", has_tokenizer=True)
    change(folder)
    with pytest.raises(QualityError) as caught:
        open_reference("toy", folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder))


def test_gguf_reference_that_adds_no_bos_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    write_gguf(tmp_path / "toy.gguf", metadata={"tokenizer.ggml.add_bos_token": False})
    with pytest.raises(QualityError, match="add_bos_token = false; Gemma needs <bos> before every text"):
        open_reference("toy", tmp_path / "toy.gguf")


def test_quantized_reference_and_other_network_are_refused(
    tmp_path: Path, toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path]
) -> None:
    with pytest.raises(QualityError, match="a model folder, whose weights are rounded"):
        open_reference("toy", toy_folder("mqa", "q8"))
    opened = open_reference("toy", toy_checkpoint("mqa"))
    with pytest.raises(QualityError, match="num_heads is 6, 4 in toy; compare what is made of it"):
        open_compared(toy_folder("mha", "q8"), opened)
    other = write_toy_checkpoint(tmp_path / "wide", {**MHA, "vocab_size": 1024}, has_tokenizer=True)
    with pytest.raises(QualityError, match="vocab_size is 1,024, 768 in toy"):
        open_compared(other, opened)


def test_gguf_needs_an_interpreter_to_run(tmp_path: Path, toy_checkpoint: Makers) -> None:
    pytest.importorskip("gguf")
    opened = open_reference("toy", toy_checkpoint("mqa"))
    export_gguf(opened.checkpoint, tmp_path / "toy.gguf")
    model = open_compared(tmp_path / "toy.gguf", opened)
    with pytest.raises(QualityError, match="--peer-python"), engine_of(model, EngineSettings(), 32, None):
        pass


def test_report_names_models_ratios_and_worst_matrices(
    tmp_path: Path, toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path], places: Places
) -> None:
    opened = open_reference("toy", toy_checkpoint("mqa"))
    models = [open_compared(toy_folder("mqa", scheme), opened) for scheme in ("q4", "q8")]
    options = Options(baselines={1: 0}, kv_dtypes=("float16", "int8"))
    document = measure(opened, places, models, options, say=silent)
    text = report(json.loads(json.dumps(document)))
    assert "format-only, code+fim" in text
    assert "end to end, code+fim" in text
    assert "ratios, code+fim, paired" in text
    assert "mqa-q8, int8 KV" in text
    assert document["models"][1]["baseline"] == "mqa-q4"
    added = document["models"][1]["comparisons"][2]["added_kl"]["all"]["value"]
    plain, rounded = (value(document, "all", "kl_mean", comparison, 1) for comparison in (1, 2))
    assert added == pytest.approx(rounded - plain)
    ratio = document["models"][1]["comparisons"][0]["ratios"]["all"]["kl_mean"]["value"]
    assert ratio == pytest.approx(value(document, "all", "kl_mean", 0, 1) / value(document, "all", "kl_mean", 0, 0))
    name, error = document["models"][0]["worst_tensors"][0]
    assert f"mqa-q4: {name.removeprefix('model.').removesuffix('.weight')} {error:.2e}" in text


def test_plot_is_drawn_and_the_same_each_time(
    tmp_path: Path, toy_checkpoint: Makers, toy_folder: Callable[[str, str], Path], places: Places
) -> None:
    pytest.importorskip("matplotlib")
    opened = open_reference("toy", toy_checkpoint("mqa"))
    models = [open_compared(toy_folder("mqa", "q4"), opened)]
    document = measure(opened, places, models, Options(), say=silent)
    for name in ("a.svg", "b.svg"):
        write_plot(document, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "format-only" in drawn
    assert "mqa-q4" in drawn


def set_json(path: Path, **changes: object) -> None:
    """Change members of a JSON file, which is made if need be."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")


def test_gguf_is_scored_end_to_end_by_the_worker_of_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Makers, places: Places
) -> None:
    """A stand-in for llama.cpp's worker answers from a file of logits that this test chooses."""
    pytest.importorskip("gguf")
    opened = open_reference("toy", toy_checkpoint("mqa"))
    export_gguf(opened.checkpoint, tmp_path / "toy.gguf")
    model = open_compared(tmp_path / "toy.gguf", opened)
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE_WORKER)
    monkeypatch.setattr("cg_local.bench.peers.LLAMA_WORKER", worker)
    options = Options(kv_dtypes=("float16", "int8"), peer_python=sys.executable)
    document = measure(opened, places, [model], options, say=silent)
    plain, first, second = document["models"][0]["comparisons"]
    assert (plain["comparison"], first["engine"], second["kv_dtype"]) == (FORMAT_ONLY, "llama.cpp", "int8")
    # All logits of the stand-in are equal: every token costs ln 768.
    assert first["groups"]["all"]["perplexity"]["value"] == pytest.approx(768)
    assert second["added_kl"]["all"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert plain["groups"]["all"]["kl_mean"]["value"] < 1e-9  # the very weights


FAKE_WORKER = """
import json, struct, sys
kinds = []
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "load":
        kinds.append(request["kv_type"])
        assert kinds[-1] in ("f16", "q8_0"), kinds
        answer = {}
    else:
        assert request["do"] == "batch_logits" and request["token_ids"][0] == 2
        num_rows = len(request["token_ids"]) - request["first"]
        with open(request["destination"], "wb") as file:
            file.write(struct.pack("<f", 0.5) * (num_rows * 768))
        answer = {"shape": [num_rows, 768]}
    print(json.dumps(answer), flush=True)
"""
