"""Figures of an evaluation: what is scored, what matches, and the sum of it."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy_tokenizer import write_toy_tokenizer

from cg_local.config import SamplingParams
from cg_local.errors import CapacityError
from cg_local.evaluation import Answer, Doubles, answer_all, evaluate_all, params_of, request_prompt, summary
from cg_local.prompts import infill_prompt
from cg_local.request_file import Request
from cg_local.tokenizer import Tokenizer

PARAMS = SamplingParams(max_tokens=4)


@functools.cache
def toy_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_file(write_toy_tokenizer(Path(folder, "tokenizer.model")))


class CountingBackend:
    """Answers " yes " to everything; the loss of a token is its position."""

    def __init__(self, batch_size: int = 2, max_context: int = 64, infill_order: str = "psm") -> None:
        self.tokenizer, self.max_context, self.batch_size = toy_tokenizer(), max_context, batch_size
        self.infill_order = infill_order
        self.sequences: list[list[int]] = []
        self.batches: list[int] = []

    def answer(self, requests: Sequence[Request], params: SamplingParams) -> list[Answer]:
        self.batches.append(len(requests))
        return [Answer(" yes ", "eos", 1, 2, -0.5, False) for _ in requests]

    def losses(self, sequences: Sequence[Sequence[int]]) -> list[Doubles]:
        assert len(sequences) <= self.batch_size
        self.sequences += [list(each) for each in sequences]
        return [np.arange(1, len(each), dtype=np.float64) for each in sequences]


def test_answers_come_in_order_and_in_batches() -> None:
    backend = CountingBackend()
    found = list(answer_all(backend, [Request(line, prefix="a") for line in (1, 2, 5)], PARAMS))
    assert [[each["line"] for each in batch] for batch in found] == [[1, 2], [5]]
    assert backend.batches == [2, 1]
    assert found[0][0] == {
        **{"line": 1, "text": " yes ", "stop_reason": "eos", "num_tokens": 1},
        **{"prompt_tokens": 2, "mean_logprob": -0.5, "truncated": False},
    }


def test_expected_answer_is_scored_behind_its_prompt_and_compared_but_for_white_space() -> None:
    backend = CountingBackend()
    requests = [Request(1, prefix="is it", expected="yes\n"), Request(2, prefix="is it", expected="no")]
    first, second = next(iter(evaluate_all(backend, requests, PARAMS)))
    assert (first["is_match"], second["is_match"]) == (True, False)
    prompt = request_prompt(backend, requests[0], 8).token_ids
    tail = backend.tokenizer.encode("yes\n")
    assert backend.sequences[0] == [*prompt, *tail]
    assert first["num_scored"] == len(tail)
    assert first["nll"] == np.mean(np.arange(len(prompt), len(prompt) + len(tail)))


def test_line_breaks_of_windows_in_an_expected_answer_match() -> None:
    backend = CountingBackend()
    backend.answer = lambda requests, params: [Answer("a\nb", "eos", 1, 2, -0.5, False)]  # type: ignore[method-assign]
    (result,) = next(iter(evaluate_all(backend, [Request(1, prefix="x", expected="a\r\nb\r\n")], PARAMS)))
    assert result["is_match"]


def test_text_beyond_the_context_is_scored_whole_in_windows() -> None:
    backend = CountingBackend(max_context=8)
    text = "for i in range(10):\n    print(i)\n"
    (result,) = next(iter(evaluate_all(backend, [Request(1, text=text)], PARAMS)))
    assert all(ids[0] == backend.tokenizer.bos_id and len(ids) <= 8 for ids in backend.sequences)
    assert [token_id for ids in backend.sequences for token_id in ids[1:]] == backend.tokenizer.encode(text)
    assert result["num_scored"] == len(backend.tokenizer.encode(text))


def test_text_and_answer_of_nothing_have_no_loss() -> None:
    requests = [Request(1, text=""), Request(2, prefix="a", expected="")]
    (results,) = evaluate_all(CountingBackend(), requests, PARAMS)
    assert [(each["nll"], each["num_scored"]) for each in results] == [(None, 0), (None, 0)]
    assert summary(results)["perplexity"] is None


def test_summary_weighs_by_tokens() -> None:
    found = summary([{"nll": 1.0, "num_scored": 3}, {"nll": 2.0, "num_scored": 1, "is_match": True}])
    assert found == {
        **{"num_requests": 2, "num_scored": 4, "mean_nll": 1.25, "perplexity": math.exp(1.25)},
        **{"num_answers": 1, "exact_match": 1.0},
    }


def test_seed_of_a_request_depends_on_its_line_alone() -> None:
    seeds = [params_of(Request(line), SamplingParams(seed=2**64 - 1)).seed for line in (1, 2)]
    assert seeds == [0, 1]
    assert params_of(Request(1), PARAMS) is PARAMS


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_gap_is_scored_in_the_order_in_which_it_is_asked(order: str) -> None:
    backend = CountingBackend(infill_order=order)
    next(iter(evaluate_all(backend, [Request(1, prefix="a = ", suffix="b", expected="1")], PARAMS)))
    prompt = infill_prompt(backend.tokenizer, "a = ", "b", order=order, max_prompt_tokens=60)
    assert backend.sequences == [[*prompt.token_ids, *backend.tokenizer.encode("1")]]


def test_answer_longer_than_the_context_is_refused_with_its_line() -> None:
    with pytest.raises(CapacityError, match="line 7: an answer of 64 tokens leaves no room in a context of 64"):
        request_prompt(CountingBackend(), Request(7, prefix="a"), 64)
