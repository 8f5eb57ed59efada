"""Figures from raw rounds, what they are held against, and how they are shown."""

from __future__ import annotations

import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from fake_engines import FakeEngine, FakeOwnEngine, FakeRoofline
from toy_models import MQA

from cg_local.bench import plot, summary
from cg_local.bench.figures import matmul_parameters, prefill_operations, spread
from cg_local.bench.session import Plan, Session
from cg_local.bench.setup import read_document, write_document
from cg_local.bench.table import report, shown
from cg_local.bench.targets import Target, is_for, targets
from cg_local.config import ModelConfig
from cg_local.errors import BenchmarkError

CONFIG = ModelConfig.from_dict(MQA, "toy")
MODEL = {"name": "toy", "num_layers": 18, "hidden_size": 2048, "scheme": "q4", "num_parameters": 1_312_000}
MACHINE = {"processor": "Abacus", "instruction_set": "avx512vnni"}
PLAN = Plan(rounds=1, num_threads=2, prefill=(512,), depths=(0, 16), batches=(1, 8), new_tokens=4, has_processes=False)


def document_of(own_speeds: tuple[float, ...], peer_speed: float = 50.0, **machine: str) -> dict[str, Any]:
    """Return a document of one round for each speed of this engine, as it is after being stored."""
    rounds = []
    for speed in own_speeds:
        engines = [FakeOwnEngine(speed, []), FakeEngine("llama.cpp Q4_0", peer_speed, [])]
        cards = {"model": MODEL, "machine": {**MACHINE, **machine}}
        session = Session(PLAN, CONFIG, engines, cards=cards, roofline=FakeRoofline(), say=lambda text: None)
        document = session.run()
        rounds += document["rounds"]
    return json.loads(json.dumps({**document, "rounds": rounds}))


def test_operations_of_a_prompt_are_products_attention_and_one_row_of_logits() -> None:
    per_layer = 2 * 256 * 4 * 64 + 2 * 256 * 64 + 3 * 256 * 512  # q and o, k and v, gate, up and down
    assert matmul_parameters(CONFIG) == 2 * per_layer
    # Three tokens make six pairs; each costs two products of head_dim in each head of each layer.
    attention = 2 * 2 * 2 * 4 * 64 * 6
    assert prefill_operations(CONFIG, 3) == 2 * 2 * per_layer * 3 + attention + 2 * 768 * 256


def test_rates_and_ratios_are_of_the_same_round() -> None:
    document = document_of((100.0, 300.0, 200.0))
    own, peer = summary.rate("cg-local", "decode", 0), summary.rate("llama.cpp Q4_0", "decode", 0)

    assert summary.over_rounds(document, own) == pytest.approx({"median": 20, "min": 10, "max": 30})
    expected = {"median": 4, "min": 2, "max": 6}
    assert summary.over_rounds(document, summary.ratio(own, peer)) == pytest.approx(expected)
    del document["rounds"][1]["llama.cpp Q4_0"]["decode"]["0"]
    expected = {"median": 3, "min": 2, "max": 4}
    assert summary.over_rounds(document, summary.ratio(own, peer)) == pytest.approx(expected)
    assert summary.over_rounds(document, summary.rate("cg-local", "decode", 99)) is None


def test_shares_are_of_the_limits_with_all_threads() -> None:
    document = document_of((100.0,))
    # 10 tokens/s of 1,002 bytes out of 100 kB/s.
    share = summary.over_rounds(document, summary.bandwidth_share(document, 0))
    assert share is not None
    assert share["median"] == pytest.approx(10 * 1002 / 1e5)
    share = summary.over_rounds(document, summary.peak_share(document, "cg-local", 512))
    assert share is not None
    assert share["median"] == pytest.approx(100 / 512 * prefill_operations(CONFIG, 512) / 1e6)


def test_gain_of_prompt_lookup_is_the_median_of_the_edits() -> None:
    def edit(plain: float, guessed: float) -> dict[str, Any]:
        return {"plain": {"tokens": 9, "seconds": [plain]}, "guessed": {"tokens": 9, "seconds": [guessed]}}

    edits = {"a": edit(6.0, 2.0), "b": edit(2.0, 2.0), "c": edit(4.0, 2.0)}
    assert summary.prompt_lookup({"cg-local": {"prompt_lookup": edits}}) == pytest.approx(2.0)
    assert summary.prompt_lookup({"cg-local": {}}) is None


def test_loading_leaves_the_first_time_out() -> None:
    document = document_of((100.0,))
    assert summary.warm_load(document, "cg-local") == pytest.approx(spread([0.25, 0.5 / 3]))


@pytest.mark.parametrize(
    ("found", "unit", "verdict"),
    [(1.2, "x", "goal met"), (1.1, "x", "met"), (0.9, "x", "not met"), (0.9, "s", "goal met"), (1.3, "s", "not met")],
)
def test_verdict_goes_by_the_median(found: float, unit: str, verdict: str) -> None:
    floor, goal = (1.0, 1.2) if unit == "x" else (1.2, 1.0)
    assert Target("speed", floor, goal, unit, spread([found])).verdict == verdict
    assert Target("speed", floor, goal, unit, None).verdict == "not measured"


def test_targets_against_the_peer_depend_on_the_instruction_set() -> None:
    rows = {row.name: row for row in targets(document_of((110.0,)))}
    assert rows["prefill 512, against llama.cpp Q4_0"].found == pytest.approx(spread([2.2]))
    assert rows["prefill 512, against llama.cpp Q4_0"].verdict == "met"
    assert rows["prefill 512, against 1.94 x llama.cpp Q4_0"].found == pytest.approx(spread([2.2 / 1.94]))
    assert rows["8 sequences together, against one"].found == pytest.approx(spread([2.0]))
    assert rows["prefill 8000, against 512"].verdict == "not measured"

    rows = {row.name: row for row in targets(document_of((110.0,), instruction_set="avx2"))}
    assert rows["prefill 512, against llama.cpp Q4_0 (AVX2)"].verdict == "goal met"
    assert not [name for name in rows if "1.94" in name]


def test_targets_are_for_one_model_only() -> None:
    document = document_of((100.0,))
    assert is_for(document)
    assert "speed to reach" in report(document)
    document["model"] = {**MODEL, "scheme": "q8"}
    assert not is_for(document)
    assert "speed to reach" not in report(document)


def test_report_shows_every_figure_with_its_spread() -> None:
    lines = report(document_of((100.0, 120.0, 110.0))).splitlines()
    text = "\n".join(lines)

    assert lines[:2] == [
        "toy (q4, 1,312,000 parameters)",
        "Abacus, avx512vnni, 2 threads; median of 3 rounds (smallest to largest)",
    ]
    assert re.search(r"^prompt of 512 +110\.0 \(100\.0 to 120\.0\) +[\d,]+ % \(", text, re.MULTILINE)
    assert re.search(r"^decode after 0 +11\.0 \(10\.0 to 12\.0\) +11 % \(10 to 12\)$", text, re.MULTILINE)
    assert re.search(r"^8 sequences +22\.0 \(20\.0 to 24\.0\) +2\.00 x of one$", text, re.MULTILINE)
    assert re.search(r"^decode after 0 +llama\.cpp Q4_0 +5\.0 +2\.20 x \(2\.00 to 2\.40\)$", text, re.MULTILINE)
    assert re.search(r"^cg-local: load, warm +0\.21 s \(0\.17 to 0\.25\) +peak memory 3 MiB$", text, re.MULTILINE)
    assert re.search(r"^decode, share of read bandwidth +11 % \(10 to 12\) +90 % +97 % +not met$", text, re.MULTILINE)


def test_report_of_an_interrupted_run_says_so_and_shows_dashes() -> None:
    document = document_of((100.0,))
    document["rounds"][0]["cg-local"]["decode"] = {}
    document["is_interrupted"] = True
    text = report(document)
    assert re.search(r"^decode after 0 +- +-$", text, re.MULTILINE)
    assert text.endswith("interrupted: these are the figures until then\n")


def test_report_of_nothing_measured_has_no_figure() -> None:
    document = {**document_of((100.0,)), "rounds": [], "engines": {}}
    assert "median of 0 rounds" in report(document)


def test_shown_figures() -> None:
    assert shown(None) == "-"
    assert shown(spread([0.984, 0.986, 0.99]), "%") == "99 % (98 to 99)"
    assert shown(spread([1234.5]), "x") == "1,234.50 x"


def test_documents_are_stored_and_read_back(tmp_path: Path) -> None:
    document = document_of((100.0,))
    write_document(document, tmp_path / "result.json")
    assert read_document(tmp_path / "result.json") == document
    with pytest.raises(BenchmarkError, match="cannot be written"):
        write_document(document, tmp_path / "none" / "result.json")
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(BenchmarkError, match="no result of `cg-local bench`"):
            read_document(tmp_path / name)


def test_plot_refuses_other_files_and_names_the_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchmarkError, match=r"\.png, \.svg"):
        plot.check_plot(tmp_path / "plot.doc")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchmarkError, match=r"pip install 'cg-local\[bench\]'"):
        plot.check_plot(tmp_path / "plot.png")


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = document_of((100.0, 120.0))
    empty = deepcopy(document)
    empty["rounds"] = []
    plot.write_plot(document, tmp_path / "full.svg")
    plot.write_plot(empty, tmp_path / "empty.svg")

    text = (tmp_path / "full.svg").read_text()
    assert text.count("llama.cpp Q4_0") >= 1
    assert len(text) > len((tmp_path / "empty.svg").read_text())
