"""Candidates are the answers that each way of drawing gives alone; merged, judged and ranked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cg_local
from cg_local import SamplingParams
from cg_local.answers import Infill
from cg_local.candidates import CANDIDATE_TEMPERATURE, SPARE_TOKENS, candidate_params, rank
from cg_local.grammars import find_parser
from cg_local.infill.parse_errors import num_added_errors
from cg_local.kv_store import KVStore
from cg_local.languages import language_of
from cg_local.model import Model
from cg_local.runtime import LocalModel

PREFIX, SUFFIX = "def area(width, height):\n    size = ", "\n    return size\n\n\nprint(area(3, 4))\n" * 4
LIVELY = SamplingParams(max_tokens=24, temperature=2.0, seed=5)
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


def loaded(folder: Path, num_candidates: int = 4, max_tokens: int = 24) -> LocalModel:
    spare = (num_candidates - 1) * (max_tokens + SPARE_TOKENS)
    return cg_local.load(folder, max_context=320, spare_tokens=spare)


def answer(result: Infill) -> tuple[object, ...]:
    return result.text, result.token_ids, result.token_logprobs, result.stop_reason, result.trimmed


@pytest.mark.parametrize("params", [LIVELY, SamplingParams(max_tokens=24), SamplingParams(max_tokens=1)])
@pytest.mark.parametrize("mode", ["line", "block"])
def test_each_candidate_is_what_its_parameters_give_alone(folder: Path, params: SamplingParams, mode: str) -> None:
    candidates = loaded(folder).infill_candidates(PREFIX, SUFFIX, "a.py", num_candidates=4, params=params, mode=mode)
    candidates.run()
    alone = [
        cg_local.load(folder, max_context=320).infill(PREFIX, SUFFIX, "a.py", params=each, mode=mode)
        for each in candidate_params(params, 4)
    ]
    found = candidates.results
    assert {each.text for each in found} == {each.text for each in alone}
    assert {answer(each) for each in found} <= {answer(each) for each in alone}
    assert sum(each.num_copies for each in found) == 4
    assert answer(candidates.first) == answer(alone[0])


def test_prompt_is_computed_once_and_all_go_on_in_one_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[int]] = []
    forward = Model.forward

    def counted(model: Model, token_ids: object, spans: list[object], *others: object) -> object:
        rows.append([span.num_tokens for span in spans])  # type: ignore[attr-defined]
        return forward(model, token_ids, spans, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "forward", counted)
    model = cg_local.load(folder, max_context=320, spare_tokens=500, speculation=False)
    candidates = model.infill_candidates(PREFIX, SUFFIX, "a.py", params=LIVELY, mode="block")
    candidates.run()
    assert rows[0] == [candidates.first.prompt_tokens]
    assert rows[1] == [1, 1, 1]
    assert all(set(row) == {1} for row in rows[1:])


def test_first_token_may_end_the_first_candidate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing left to share but the pages that the prompt is found by."""
    model = loaded(folder)
    first_id = model.infill(PREFIX, SUFFIX, "a.py", params=LIVELY).token_ids[0]
    monkeypatch.setattr(model.tokenizer, "infill_stop_ids", frozenset((first_id,)))
    candidates = model.infill_candidates(PREFIX, SUFFIX, "a.py", params=LIVELY)
    candidates.run()
    assert (candidates.first.text, candidates.first.stop_id) == ("", first_id)
    assert sum(each.num_copies for each in candidates.results) == 3


def test_too_little_room_gives_fewer_candidates(folder: Path) -> None:
    """Blocks that neither line nor block ends fill the pages of the context."""
    model = cg_local.load(folder, max_context=200)
    params = SamplingParams(max_tokens=100, temperature=2.0, seed=5)
    candidates = model.infill_candidates(PREFIX, "", "a.txt", num_candidates=9, params=params, mode="block")
    candidates.run()
    whole = [each for each in candidates.results if each.stop_reason != "interrupted"]
    assert whole
    alone = [model.infill(PREFIX, "", "a.txt", params=each, mode="block") for each in candidate_params(params, 9)]
    assert {answer(each) for each in whole} <= {answer(each) for each in alone}


def test_interrupt_keeps_what_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(folder)
    candidates = model.infill_candidates(PREFIX, SUFFIX, "a.py", params=LIVELY, mode="block")
    forward, num_steps = Model.forward, iter(range(99))

    def interrupted(*arguments: object) -> object:
        if next(num_steps) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            candidates.run()
    assert "interrupted" in {each.stop_reason for each in candidates.results}
    assert model.infill(PREFIX, SUFFIX, "a.py").cached_tokens > 100


def test_kept_prefix_serves_candidates(folder: Path, tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        model = loaded(folder)
        model.use_kv_store(KVStore(tmp_path))
        candidates = model.infill_candidates(PREFIX, SUFFIX, "a.py", params=LIVELY)
        candidates.run()
        results.append([answer(each) for each in candidates.results])
        model.save_prefix()
    assert candidates.first.cached_tokens == (candidates.first.prompt_tokens - 1) // 16 * 16
    assert results[0] == results[1]


def test_greedy_stays_first_and_the_others_are_drawn_repeatably() -> None:
    greedy, second, third = candidate_params(SamplingParams(max_tokens=9), 3)
    assert greedy == SamplingParams(max_tokens=9)
    assert [each.temperature for each in (second, third)] == [CANDIDATE_TEMPERATURE] * 2
    assert (second.seed, third.seed) == (1, 2)
    assert [each.seed for each in candidate_params(SamplingParams(temperature=1.0), 3)] == [None] * 3
    assert [each.seed for each in candidate_params(SamplingParams(temperature=1.0, seed=2**64 - 1), 2)] == [
        2**64 - 1,
        0,
    ]


# Ranking


def infill(text: str, mean_logprob: float | None) -> Infill:
    return Infill(text, "line", 1, mean_logprob, 1, 0, 0.0, 0.0, None, None)


def test_rank_merges_and_puts_what_parses_first_then_what_is_probable() -> None:
    errors = {"broken": 2, "less": 1, "good": 0, "better": 0, "  ": 0, "": 0}
    given = [infill("broken", -0.1), infill("  ", -0.01), infill("good", -3.0), infill("better", -0.5)]
    given += [infill("good", -1.0), infill("less", -9.0), infill("", None)]
    ranked = rank(given, lambda texts: [errors[text] for text in texts])
    assert [(each.text, each.mean_logprob, each.num_copies) for each in ranked] == [
        ("better", -0.5, 1),
        ("good", -1.0, 2),
        ("less", -9.0, 1),
        ("broken", -0.1, 1),
        ("  ", -0.01, 1),
        ("", None, 1),
    ]
    assert [each.num_parse_errors for each in ranked] == [0, 0, 1, 2, 0, 0]


def test_rank_without_a_grammar_goes_by_probability() -> None:
    assert [each.text for each in rank([infill("a", -2.0), infill("b", -1.0)], lambda _: [None, None])] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("x = 1\n", "a.py", True),
        ("x = (\n", "a.py", False),
        ("def f():\nreturn 1\n", "a.py", False),
        ("x = '\\d'\n", "a.py", True),
        ("x = \0\n", "a.py", False),
        ("(" * 5000, "a.py", False),
        ("x = 1\n", "a.unknown", None),
        ("x = 1\n", None, None),
        ("x = 1\n" * 400_000, "a.py", None),
        ("let x = {a: 1};\n", "a.js", True),
        ("let x = {a: 1;\n", "a.js", False),
        ("package a\n\nfunc f( {}\n", "a.go", False),
        ("package a\n\nfunc f() {}\n", "a.go", True),
        ('{"a": [1, 2]}\n', "a.json", True),
        ('{"a": [1, 2}\n', "a.json", False),
    ],
)
def test_what_parses(text: str, path: str | None, expected: bool | None) -> None:
    if path in ("a.js", "a.go", "a.json") and find_parser({"js": "javascript"}.get(path[2:], path[2:])) is None:
        pytest.skip("needs the extra syntax")
    (found,) = num_added_errors("", "", path, [text])
    assert (None if found is None else found == 0) == expected


@pytest.mark.parametrize(
    ("path", "before", "after", "good", "broken"),
    [
        ("a.py", "x = ", "\n", "1", "(1"),
        ("a.py", "x = ", "\n\n\ndef later():\n    y = \n\n\nz = foo(\n", "1", "(1"),  # other open gaps
        ("a.py", "def f():\n    ", "\n\n\ndef later():\n", "return 1", "return )"),
        ("a.py", "if ", ":\n    pass\n\nfor x in :\n    pass\n", "a > 1", "a > )"),
        ("a.ts", "const x = ", ";\n\nfunction later( {\n}\n", "{a: 1}", "{a: 1}}"),
        ("a.go", "package a\n\nfunc f() int {\n\treturn ", "\n}\n\nfunc g() {\n\tx := \n}\n", "1 + 2", "1 + )"),
        ("a.json", '{"a": ', ', "b": }\n', "[1, 2]", "[1, 2}"),
    ],
)
def test_candidate_is_to_blame_for_its_own_errors_alone(
    path: str, before: str, after: str, good: str, broken: str
) -> None:
    if not path.endswith(".py") and find_parser(language_of(path) or "") is None:
        pytest.skip("needs the extra syntax")
    first, second = num_added_errors(before, after, path, [good, broken])
    assert first == 0
    assert second is not None
    assert second > 0
    assert num_added_errors(before, after, path, [good]) == [0]
    (alone,) = num_added_errors(before, after, path, [broken])
    assert alone is not None
    assert alone > 0


def test_text_of_no_known_language_has_no_errors_to_count() -> None:
    assert num_added_errors("(", "", "a.unknown", ["(", ")"]) == [None, None]
