"""The table of quality by bytes: which models stand beside which, bytes at equal divergence, README's text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from source_tree import ROOT


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    """Import the script."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import quality_table

        yield quality_table
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def words(table: ModuleType) -> ModuleType:
    """The script's module that words its results."""
    return sys.modules["quality_text"]


def model(name: str, kind: str, size: int, kl: float, **more: Any) -> dict[str, Any]:
    """Return a model of a document with one comparison."""
    figures = {
        "kl_mean": {"value": kl, "low": kl * 0.9, "high": kl * 1.1},
        "top1_agreement": {"value": 0.95, "low": 0.94, "high": 0.96},
    }
    comparison = {"comparison": "format-only", "groups": {"code+fim": figures}, **more}
    return {
        "name": name,
        "kind": kind,
        "num_bytes": size,
        "bits_per_weight": 4.5,
        "baseline": "q4_k_m" if "ratios" in more else None,
        "comparisons": [comparison],
    }


def document(*models: dict[str, Any]) -> dict[str, Any]:
    """Return a document of models."""
    return {
        "reference": {"name": "nano"},
        "num_scored": {"code+fim": 16_400, "code": 15_000},
        "num_documents": {"code+fim": 120, "code": 90},
        "models": list(models),
    }


def test_readme_holds_what_the_script_writes(table: ModuleType, words: ModuleType) -> None:
    import readme_markers

    text = words.readme_text(table.read(table.RESULTS / "quality-nano.json"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_markers.replaced(readme, table.AROUND, text) == readme


def test_readme_row_without_its_comparison_is_named(table: ModuleType, words: ModuleType) -> None:
    stored = table.read(table.RESULTS / "quality-nano.json")
    models = [
        {**each, "comparisons": [c for c in each["comparisons"] if c.get("activations") != "int16"]}
        for each in stored["models"]
    ]
    with pytest.raises(ValueError, match=r"nano-q8-imp with activations int16 has no comparison end to end"):
        words.readme_text({**stored, "models": models})


def test_models_are_held_against_the_type_of_their_size(words: ModuleType) -> None:
    names = ["nano-q4", "nano-q4s", "nano-q8", "q4_0", "q4_k_m", "q8_0", "imatrix-q4_0", "nano-q4-gptq", "other"]
    assert words.pairs(names) == {0: 4, 1: 3, 2: 5, 7: 4}


def test_bytes_at_equal_divergence_follow_the_peers_line(words: ModuleType) -> None:
    peers = [model("q4_0", "GGUF", 1000, 0.04), model("q6_k", "GGUF", 2000, 0.01)]
    worse = model("q4_1", "GGUF", 1600, 0.05)  # larger and worse than q4_0
    weighted = model("imatrix-q4_0", "GGUF", 1000, 0.001)
    # Half way in ln KL: 1500 bytes.
    ours = model("nano-q4", "model folder", 1200, math.sqrt(0.04 * 0.01))
    beyond = model("nano-q8", "model folder", 3000, 0.001)
    found = words.bytes_at_equal_divergence(document(*peers, worse, weighted, ours, beyond), "format-only", "code+fim")
    assert found == pytest.approx({"nano-q4": 0.8})


def test_markdown_has_a_row_for_each_model_by_size(words: ModuleType) -> None:
    ratio = {"code+fim": {"kl_mean": {"value": 0.5, "low": 0.45, "high": 0.55}}}
    ours = model("nano-q4", "model folder", 1 << 20, 0.0123, ratios=ratio)
    text = words.markdown(document(model("q4_k_m", "GGUF", 2 << 20, 0.02), ours))
    lines = text.splitlines()
    assert "16,400 held-out" in text
    ratio_text = "0.50 (0.45 to 0.55) x q4_k_m at 0.50 x its bytes"
    assert lines[-5] == f"| **nano-q4** | 1.00 | 4.50 | 0.0123 ± 0.0012 | - | 95.0% | {ratio_text} |"
    assert lines[-4] == "| llama.cpp q4_k_m | 2.00 | 4.50 | 0.0200 ± 0.0020 | - | 95.0% |  |"
    assert lines[-2] == "Bytes at equal KL over llama.cpp's files without imatrix, format-only: none in their range."
    peers = model("q4_0", "GGUF", 1000, 0.04), model("q6_k", "GGUF", 2000, 0.01)
    within = words.markdown(document(*peers, model("nano-q4", "model folder", 1200, math.sqrt(0.04 * 0.01))))
    assert "files without imatrix, format-only: nano-q4 0.80." in within


def end_to_end(kv_dtype: str, kl: float, **more: Any) -> dict[str, Any]:
    """Return a comparison of a model as an engine runs it."""
    groups = {"code+fim": {"kl_mean": {"value": kl, "low": kl - 1e-5, "high": kl + 1e-5}}}
    return {"comparison": "end to end", "kv_dtype": kv_dtype, "activations": "int8", "groups": groups, **more}


def test_8_bit_k_and_v_are_shown_with_what_they_add_on_both_sides(table: ModuleType, words: ModuleType) -> None:
    stored = table.read(table.RESULTS / "quality-nano.json")
    bare = [{**each, "comparisons": [c for c in each["comparisons"] if c.get("kv_dtype") != "int8"]}
            for each in stored["models"]]  # fmt: skip
    stored = {**stored, "models": bare}
    assert not words.kv_rows(stored, "code+fim")
    added = [
        {"code+fim": {"value": value, "low": value - 1e-5, "high": value + 1.23e-5}} for value in (4.44e-5, 6.66e-5)
    ]
    others = [
        {"name": name, "comparisons": [end_to_end("float16", 0.0006), end_to_end("int8", kl, added_kl=more)]}
        for name, kl, more in zip(words.KV_MODELS, (0.00064, 0.0007), added, strict=True)
    ]
    document = table.with_kv(stored, {"models": others})
    by_name = {each["name"]: each for each in document["models"]}
    for name in words.KV_MODELS:
        before = next(each for each in bare if each["name"] == name)
        assert by_name[name]["comparisons"][:-1] == before["comparisons"]
    assert by_name["q4_0"] in bare
    ours, theirs = "0.000044 (0.000034 to 0.000057)", "0.000067 (0.000057 to 0.000079)"
    row = f"| `q8`, imp, int8 K and V | 8.27 | - | 0.000640 ± 0.000010 | adds {ours}; "
    row += f"llama.cpp's q8_0 K and V to Q8_0: {theirs} |"
    assert words.readme_text(document) == words.readme_text(stored) + "\n" + row
    text = words.markdown(document)
    assert f"K and V in 8 bits add {ours} to nano-q8-imp." in text
    assert f"K and V in 8 bits add {theirs} to q8_0." in text


def test_stored_result_is_read_again_with_six_digits(table: ModuleType, tmp_path: Path) -> None:
    made = document(model("nano-q4", "model folder", 1000, 1 / 3), model("q4_0", "GGUF", 2000, 0.25))
    table.write_stored(made, tmp_path / "result.json")
    found = table.read(tmp_path / "result.json")
    kl = found["models"][0]["comparisons"][0]["groups"]["code+fim"]["kl_mean"]
    assert kl["value"] == 0.333333
    assert {**found, "models": found["models"][1:]} == {**made, "models": made["models"][1:]}


def test_what_is_no_result_is_refused(table: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"rounds": []}))
    with pytest.raises(ValueError, match="no result of this program"):
        table.read(path)
    assert table.main(["text", str(tmp_path / "gone.json")]) == 1
