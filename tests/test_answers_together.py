"""Several answers as one batch: each is the one it would be alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cg_local
from cg_local import SamplingParams
from cg_local.answers import AnswerStream, Infill, read_together
from cg_local.engine import Engine
from cg_local.errors import PromptError

PREFIXES = [f"def f{number}(x):\n    y = {number}{' + x' * number}" for number in range(5)]
PARAMS = SamplingParams(max_tokens=12, temperature=2.0, seed=5)


def test_answers_of_a_batch_are_those_of_each_alone(
    toy_folder: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, no_page_leaks: None
) -> None:
    alone = cg_local.load(toy_folder("mqa", "q4"))
    expected = [alone.infill(prefix, "\n", "a.py", params=PARAMS) for prefix in PREFIXES]
    model = cg_local.load(toy_folder("mqa", "q4"), num_sequences=3)
    sizes: list[int] = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (sizes.append(len(engine.sequences)), step(engine))[1])

    def start(prefix: str) -> AnswerStream[Infill]:
        if not prefix:
            raise PromptError("nothing to go on")
        return model.infill(prefix, "\n", "a.py", params=PARAMS, stream=True)

    starts = [lambda prefix=prefix: start(prefix) for prefix in [*PREFIXES[:2], "", *PREFIXES[2:]]]
    answers = dict(read_together(starts, 3))
    assert str(answers.pop(2)) == "nothing to go on"
    found = [answers[number] for number in sorted(answers)]
    texts = [(answer.text, answer.token_ids, answer.mean_logprob) for answer in found if isinstance(answer, Infill)]
    assert texts == [(answer.text, answer.token_ids, answer.mean_logprob) for answer in expected]
    assert max(sizes) == 3


def test_batch_that_is_left_closes_its_answers(toy_folder: Callable[[str, str], Path], no_page_leaks: None) -> None:
    model = cg_local.load(toy_folder("mqa", "q4"), num_sequences=2)
    starts = [
        lambda prefix=prefix: model.infill(prefix, "\n", "a.py", params=PARAMS, stream=True) for prefix in PREFIXES
    ]
    batch = read_together(starts, 2)
    next(batch)
    batch.close()
    assert model.infill(PREFIXES[4], "\n", "a.py", params=PARAMS).cached_tokens == 0
