"""The most probable tokens beside each chosen one, and answers of their own from one prompt's K and V."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_engines import engine_of, generate, log_softmax, pages_in_use, result_of, toy_prompt

from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import ConfigError
from cg_local.sequence import Sequence

pytestmark = pytest.mark.usefixtures("no_page_leaks")
VOCAB_SIZE = 700
"""Fewer than the toy has rows: those behind are never chosen, and never among the most probable."""


@pytest.fixture
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


def assert_top_logprobs_are_those_of_the_logits(engine: Engine, sequence: Sequence, count: int) -> None:
    first = sequence.num_prompt_tokens
    logits = engine.logits(sequence.token_ids[:-1])[first - 1 :, :VOCAB_SIZE]
    expected = log_softmax(logits)
    assert len(sequence.top_logprobs) == len(sequence.logprobs) == len(logits)
    for row, found, chosen, logprob in zip(
        expected, sequence.top_logprobs, sequence.completion_ids, sequence.logprobs, strict=True
    ):
        order = np.argsort(-row, kind="stable")[:count]
        assert [each.token_id for each in found] == order.tolist()
        np.testing.assert_allclose([each.logprob for each in found], row[order], rtol=0, atol=1e-6)
        assert logprob == pytest.approx(row[chosen], abs=1e-6)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "top_k": 5, "seed": 1}])
@pytest.mark.parametrize("num_drafts", [0, 15])
def test_top_logprobs_are_those_of_the_logits(folder: Path, params: dict[str, Any], num_drafts: int) -> None:
    """With guesses, several come from one step; a repeated prompt makes guesses right."""
    engine = engine_of(folder, vocab_size=VOCAB_SIZE, max_draft_tokens=num_drafts)
    prompt = toy_prompt(24, vocab_size=VOCAB_SIZE) * 3
    sequence = generate(engine, prompt, max_tokens=16, top_logprobs=4, **params)
    assert_top_logprobs_are_those_of_the_logits(engine, sequence, 4)


def test_nobody_asks_nobody_pays(folder: Path) -> None:
    sequence = generate(engine_of(folder), toy_prompt(20), max_tokens=5)
    assert sequence.top_logprobs == [()] * 5


def test_more_than_the_vocabulary_is_all_of_it(folder: Path) -> None:
    engine = engine_of(folder, vocab_size=VOCAB_SIZE)
    sequence = generate(engine, toy_prompt(20), max_tokens=1, top_logprobs=10_000)
    found = [each.token_id for each in sequence.top_logprobs[0]]
    assert sorted(found) == list(range(VOCAB_SIZE))
    assert sum(np.exp(each.logprob) for each in sequence.top_logprobs[0]) == pytest.approx(1)


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_logprobs is -1; give a whole number of at least 0"):
        SamplingParams(top_logprobs=-1)


# Answers of their own from one prompt


@pytest.mark.parametrize("length", [33, 32, 31, 1, 600])
@pytest.mark.parametrize("num_drafts", [0, 15])
def test_answers_of_a_shared_prompt_are_those_of_the_prompt_alone(folder: Path, length: int, num_drafts: int) -> None:
    """Pages of 16 tokens: the last one of the prompt is full, has one token, or lacks one."""
    prompt = toy_prompt(length)
    settings = [{"temperature": 1.0, "seed": seed, "max_tokens": 20, "top_logprobs": 2} for seed in range(3)]
    alone = [generate(engine_of(folder), prompt, **each) for each in settings]
    engine = engine_of(folder, max_context=700, num_pages=60, max_draft_tokens=num_drafts)
    first = engine.add(prompt, SamplingParams(**settings[0]))  # type: ignore[arg-type]
    while not engine.step():
        pass
    used = pages_in_use(engine)
    others = [engine.fork_prompt(first, SamplingParams(**each)) for each in settings[1:]]  # type: ignore[arg-type]
    assert pages_in_use(engine) == used
    engine.run()
    assert [result_of(each) for each in (first, *others)] == [result_of(each) for each in alone]
    assert [each.top_logprobs for each in (first, *others)] == [each.top_logprobs for each in alone]
    assert [each.num_cached for each in others] == [length - 1] * 2


def test_prompt_is_shared_after_many_tokens_of_the_first_answer_too(folder: Path) -> None:
    engine = engine_of(folder)
    prompt = toy_prompt(40)
    first = engine.add(prompt, SamplingParams(max_tokens=60))
    for _ in range(40):
        engine.step()
    assert len(first.completion_ids) > 30
    twin = engine.fork_prompt(first)
    engine.run()
    assert result_of(twin) == result_of(first)
    assert result_of(first) == result_of(generate(engine_of(folder), prompt, max_tokens=60))


def test_prompt_that_is_not_computed_yet_is_computed_by_both(folder: Path) -> None:
    engine = engine_of(folder)
    first = engine.add(toy_prompt(40), SamplingParams(max_tokens=6))
    twin = engine.fork_prompt(first)
    engine.run()
    assert result_of(twin) == result_of(first) == result_of(generate(engine_of(folder), toy_prompt(40), max_tokens=6))
