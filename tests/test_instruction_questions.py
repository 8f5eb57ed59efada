"""The evaluation's questions: right answers pass their checks, wrong ones do not; counts and the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import instruction_questions
from sandbox import Sandbox

from cg_local.training.instruction.conversation import code_blocks, fenced
from cg_local.training.instruction.questions import Question, read_questions
from cg_local.training.instruction.subjects import with_docstring

QUESTIONS = read_questions()
OTHER_ANSWERS = {
    "Can you give me": fenced("def f(n):\n    return n % 2 == 0"),
    "Please write me some": fenced("def f(n):\n    return 1 if n < 2 else n * f(n - 1)"),
    "How could I count": fenced(
        "def f(text):\n    words = text.split()\n    return {w: words.count(w) for w in words}"
    ),
    "Write a function that returns the product": fenced("def f(x):\n    return x[0] * x[-1]"),
    "Can you add type hints": fenced(
        "def count_in_text(text: str, letter: str) -> int:\n    return text.count(letter)"
    ),
    "What does this function do?": "`net` takes `price` and `tax` and returns `price - tax`.",
    "Explain this code": "For each `name` in `names`, if it is longer than `size`, it is added; it returns `found`.",
    "Explain: ": "It returns True if `age` is at least 18.",
    "Write a test for": fenced("def test_plus_two():\n    assert plus_two(2, 3) == 5"),
    "Please write a unit": fenced('def test_it():\n    assert to_capitals("a") == "A"'),
    "Write a pytest": fenced("def test_it():\n    assert last_two([1, 2, 3]) == [2, 3]"),
    "Could you now": fenced('def double(x):\n    """Return twice x."""\n    return x * 2'),
    "Please rename a to": fenced("def larger(left, b):\n    if left > b:\n        return left\n    return b"),
    "Hello nano": "Hello!",
    "Who are you": "I am a small model.",
    "What are the": "I write functions.",
    "Please write me a": "I am sorry, I know Python only.",
    "Thank you": "You are welcome.",
}


def right_answer(question: Question) -> str:
    for start, answer in OTHER_ANSWERS.items():
        if question.ask.startswith(start):
            return answer
    if question.kind == "docstring":
        return fenced(with_docstring(question.solution, "Return the even ones, or so."))
    return f"Here it is.\n\n{fenced(question.solution)}"


def wrong_answer(question: Question) -> str:
    """What the question itself shows, or code that does nothing."""
    shown = code_blocks(question.ask)
    return fenced(shown[0].strip()) if shown else fenced("def f(*x):\n    return None")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()


def test_there_are_fifty_questions_and_most_want_code() -> None:
    assert len(QUESTIONS) == len({question.ask for question in QUESTIONS}) == 50
    assert sum(question.wants_code for question in QUESTIONS) == 42


def test_right_answers_pass_and_wrong_ones_do_not(sandbox: Sandbox) -> None:
    for answers, expected in ((right_answer, True), (wrong_answer, False)):
        results = instruction_questions.judge(QUESTIONS, [(answers(item), "eos") for item in QUESTIONS], sandbox)
        assert [item.question.ask for item in results if item.has_passed is not expected] == []
        if expected:
            assert all(item.has_parsed in (True, None) and item.has_stopped for item in results)


def test_code_counts_as_parsed_only_if_there_is_some_and_all_of_it_is_python() -> None:
    question = QUESTIONS[0]
    texts = ("no code", fenced("x = 1"), fenced("x ="), f"{fenced('x = 1')}\n{fenced('x =')}", "```python\nx = 1\n")
    assert [question.parses(text) for text in texts] == [False, True, False, False, False]


def test_table_counts_every_question(sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert instruction_questions.main(["--check-scorer", "--answers", str(tmp_path / "answers.txt")]) == 0
    printed = capsys.readouterr()
    assert '"questions": 50' in printed.out
    assert "| fix | 8 | 8 of 8 | 8 | 8 |" in printed.err
    assert (tmp_path / "answers.txt").read_text().count("#### ") == 50


def test_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert instruction_questions.main(["--model", "no-such-model"]) == 1
    assert capsys.readouterr().err.startswith("instruction_questions: no-such-model: no such model")
