"""README.md's table of speeds is what the stored results say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from source_tree import ROOT
from test_bench_report import document_of

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import readme_markers
import readme_table


def test_readme_holds_what_the_script_writes() -> None:
    results = readme_table.stored_results()
    if not results:
        pytest.skip("no result of `cg-local bench` is stored")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_markers.replaced(readme, readme_table.AROUND, readme_table.speed_text(results)) == readme


def test_table_has_a_column_for_each_result_and_a_row_for_each_figure() -> None:
    q4, q8 = document_of((100.0, 120.0, 110.0), instruction_set="avx2"), document_of((50.0,))
    q8["rounds"][0]["cg-local"]["batch"].pop("8")
    lines = readme_table.speed_text({"q4": q4, "q8": q8}).splitlines()

    assert lines[:2] == [
        "On 2 cores of an Abacus (avx2; 0.0 GB/s of read bandwidth, 0",
        "billion int8 operations/s), with random weights of 2B's exact shape; medians of 3 rounds, spread in brackets.",
    ]
    assert lines[3:5] == ["| | q4 | q8 |", "| --- | --- | --- |"]
    assert "| decoding, tokens/s; of the read bandwidth | 11.0 (10.0 to 12.0); 11 % | 5.0; 5 % |" in lines
    assert "| 8 sequences together, against one | 2.00 x |  |" in lines
    against = "against llama.cpp with Q4_0 and Q8_0: prompt of 512; decoding"
    # The column q8 is held against Q8_0, which this document does not have.
    assert f"| {against} | 2.20 x (2.00 to 2.40); 2.20 x (2.00 to 2.40) |  |" in lines


def test_runs_of_one_model_and_machine_are_merged() -> None:
    one, two = document_of((100.0,)), document_of((300.0, 200.0))
    for document in (one, two):
        document["model"] = {**document["model"], "sha256": "ab"}
    both: Any = readme_table.merged([one, two])

    assert len(both["rounds"]) == 3
    text = readme_table.speed_text({"q4": both})
    assert "medians of 3 rounds of 2 runs" in text
    assert "20.0 (10.0 to 30.0)" in text
    two["model"]["sha256"] = "cd"
    with pytest.raises(ValueError, match="different model: cd, not ab"):
        readme_table.merged([one, two])
    one["peer_files"] = two["peer_files"] = {"peer": {"sha256": "01"}}
    assert len(readme_table.merged([one, two])["rounds"]) == 3
    two["peer_files"] = {"peer": {"sha256": "02"}}
    with pytest.raises(ValueError, match="different model: cd, not ab"):
        readme_table.merged([one, two])


def test_merged_runs_count_the_loads_of_each_but_the_first() -> None:
    documents = [document_of((100.0,)), document_of((300.0,))]
    for document, loads in zip(documents, ([9.0, 1.0, 3.0], [8.0, 5.0]), strict=True):
        document["model"] = {**document["model"], "sha256": "ab"}
        document["engines"] = {"cg-local": {**document["engines"]["cg-local"], "load_seconds": loads}}
    documents[1]["engines"]["late peer"] = {"load_seconds": [7.0, 2.0]}
    both: Any = readme_table.merged(documents)

    assert readme_table.warm_load(both, "cg-local") == {"median": 3.0, "min": 1.0, "max": 5.0}
    assert readme_table.warm_load(both, "late peer") == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert documents[0]["engines"]["cg-local"]["load_seconds"] == [9.0, 1.0, 3.0]


def test_runs_on_other_numbers_of_threads_are_not_merged() -> None:
    documents = [document_of((100.0,)), document_of((300.0,))]
    for document, num_threads in zip(documents, (2, 4), strict=True):
        document["model"] = {**document["model"], "sha256": "ab"}
        document["num_threads"] = num_threads
    with pytest.raises(ValueError, match="results on 4 threads, not 2"):
        readme_table.merged(documents)


def test_text_stands_between_the_markers() -> None:
    begin, end = readme_table.AROUND
    readme = f"before\n{begin}\nold\n{end}\nafter\n"
    assert readme_markers.replaced(readme, readme_table.AROUND, "new") == readme.replace("old", "new")
    with pytest.raises(ValueError, match="are needed around the table"):
        readme_markers.replaced("before\n", readme_table.AROUND, "new")


def test_missing_results_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    assert readme_table.main([]) == 1
    assert "no result named bench-2b-q4*.json" in capsys.readouterr().err
