"""The benchmark of repository context: which lines count, what is refused, and figures equal to a plain computation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import repository_context as benchmark
from repository_context import STANDARD_LIBRARY, Case, Variant

import cg_local
from cg_local.prompts import infill_prompt
from cg_local.repository.work_tree import WorkTree

SOURCE = '''from a.money import Money


def total(items):
    """Sum."""
    money = Money(0)
    for item in items: money.add(item)
    if money.is_debt: raise ValueError(
        money)
    return money.cents
'''


def test_lines_are_whole_statements_inside_of_definitions() -> None:
    lines = SOURCE.split("\n")
    found = sorted(lines[number].strip() for number in benchmark.statement_lines(SOURCE))
    assert found == ["money = Money(0)", "return money.cents"]


def test_a_package_that_the_card_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nano was trained on numpy"):
        benchmark.copied("numpy", tmp_path, "nano")


def test_only_held_out_files_of_the_standard_library_are_asked_for() -> None:
    paths = [f"module_{number}.py" for number in range(2000)]
    assert 5 <= sum(benchmark.is_held_out(STANDARD_LIBRARY, path) for path in paths) <= 40
    assert all(benchmark.is_held_out("hypothesis", path) for path in paths)


def test_figures_are_those_of_the_logits(tmp_path: Path, toy_folder: Callable[[str, str], Path]) -> None:
    tmp_path.joinpath("a").mkdir()
    tmp_path.joinpath("a/money.py").write_text("class Money:\n    cents = 0\n")
    tmp_path.joinpath("a/cart.py").write_text(SOURCE)
    model = cg_local.load(toy_folder("mqa", "q4"))
    plain, wide = Variant(400, 0), Variant(400, 100)
    row = benchmark.ask(model, WorkTree(tmp_path.resolve(), is_git=False), Case("a", "a/cart.py", 5), [plain, wide])
    assert row is not None
    line = "    money = Money(0)\n"
    prefix, suffix = SOURCE.split(line)
    true_ids = model.tokenizer.encode(line)
    for variant, context in ((plain, []), (wide, [("a/money.py", "class Money:\n    cents = 0\n")])):
        prompt = infill_prompt(
            model.tokenizer, prefix, suffix, path="a/cart.py", context=context, max_prompt_tokens=400
        ).token_ids
        logits = model.logits([*prompt, *true_ids])[len(prompt) - 1 : -1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = np.mean([step[token_id] for step, token_id in zip(logprobs, true_ids, strict=True)])
        assert row[variant.name]["logprob"] == pytest.approx(expected, abs=1e-9)
        assert row[variant.name]["exact"] == bool((logprobs.argmax(axis=1) == true_ids).all())
    assert (row["400/0"]["kinds"], row["400/100"]["kinds"]) == ([], ["import"])
    figures = benchmark.figures_of([row], wide, plain)
    assert figures["difference"] == pytest.approx(row["400/100"]["logprob"] - row["400/0"]["logprob"])
