"""Conversations made by program: code that parses, bugs that are bugs, edits that change what they say, and no more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cg_local
from cg_local.prompts import chat_prompt
from cg_local.tokenizer import Tokenizer
from cg_local.training.instruction import corpus_functions, mutations, pairs, subjects, tasks
from cg_local.training.instruction.conversation import Conversation, Turn, code_blocks, pack
from cg_local.training.instruction.explain import explain
from cg_local.training.instruction.families import Filled, fill, load_families
from cg_local.training.instruction.questions import QuestionIndex, read_questions

FAMILIES = load_families()
NANO = Path(cg_local.__file__).parent / "models" / "nano"
FILE = '''
def grow(values, step):
    """Return the values made larger.

    >>> grow([1, 2], 3)
    [4, 5]
    """
    result = []
    for value in values:
        result.append(value + step)
    return result


def shrink(value):
    return value - 1
    # not plain: one line
'''


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    found = dict(
        zip(("bare", "shown"), map(list, zip(*corpus_functions.subjects_of(FILE * 1), strict=True)), strict=True)
    )
    shown = [subject for subject in found["shown"] if subject]
    sources = pairs.Sources(FAMILIES, found["bare"], shown, pairs.talk_by_answer())
    return pairs.make_conversations(sources, QuestionIndex(read_questions()), 600, seed=3)[0]


def filled(rng: np.random.Generator) -> Iterator[Filled]:
    for family in FAMILIES:
        yield fill(family, rng, own_name=True, own_arguments=True)


def test_every_family_gives_code_that_parses_and_wordings_without_open_slots() -> None:
    rng = np.random.default_rng(0)
    assert len(FAMILIES) == len({family.key for family in FAMILIES}) >= 300
    for item in filled(rng):
        ast.parse(item.subject.source)
        assert not any("$" in text for text in (item.subject.source, *item.requests))


def test_every_code_answer_parses(conversations: list[Conversation]) -> None:
    turns = [turn for item in conversations for turn in item.turns]
    blocks = [block for turn in turns for block in code_blocks(turn.answer)]
    assert len(blocks) > 500
    for block in blocks:
        assert ast.parse(block).body
    assert all(turn.answer.count("```") in (0, 2) for turn in turns)
    assert all(text == text.strip() != "" for turn in turns for text in (turn.question, turn.answer))


def test_the_same_seed_gives_the_same_conversations_without_duplicates(conversations: list[Conversation]) -> None:
    sources = pairs.Sources(FAMILIES[:20], [], [], pairs.talk_by_answer())
    index = QuestionIndex(read_questions())
    first, second = (pairs.make_conversations(sources, index, 40, seed=5)[0] for _ in range(2))
    assert first == second != pairs.make_conversations(sources, index, 40, seed=6)[0]
    assert len({item.turns for item in conversations}) == len(conversations)


def test_planted_bugs_differ_and_their_fixes_restore_the_original() -> None:
    rng = np.random.default_rng(1)
    num_bugs = 0
    for item in filled(rng):
        for bugs in mutations.plant(item.subject.source).values():
            num_bugs += len(bugs)
            assert all(mutations.parsed(bug.source) != mutations.parsed(item.subject.source) for bug in bugs)
        turn = tasks.fix(item.subject, rng)
        if turn is not None:
            assert code_blocks(turn.answer) == [item.subject.source + "\n"]
            assert item.subject.source not in turn.question
    assert num_bugs > 2000


def test_a_bug_that_no_example_feels_is_told_from_one_that_it_does() -> None:
    calls = (("[1, 2]", "2"),)
    right = "def top(numbers):\n    return max(numbers)"
    harmless, wrong, endless = (
        mutations.Bug(source, "")
        for source in (
            right + " + 0",
            right.replace("max", "min"),
            right.replace("return", "while True: pass\n    return"),
        )
    )
    assert [mutations.is_felt("top", bug, calls) for bug in (harmless, wrong, endless)] == [False, True, True]


def test_renaming_changes_one_name_everywhere_and_nothing_else() -> None:
    source = "def count(items):\n    total = 0\n    for x in items:\n        total += x.total\n    return total"
    assert subjects.renamable(source) == ["count", "items", "x"]  # `total` is an attribute too
    assert subjects.rename(source, "x", "entry") == source.replace("for x", "for entry").replace(
        "x.total", "entry.total"
    )


def test_docstring_and_type_hints_leave_the_code_as_it_is() -> None:
    rng = np.random.default_rng(2)
    for item in filled(rng):
        subject = item.subject
        if subject.function is None or not subject.returns:
            continue
        tree = ast.parse(tasks.documented(subject))
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
        assert ast.get_docstring(function) == subjects.sentence(subject.summary or "")
        del function.body[0]
        assert ast.dump(tree) == ast.dump(subject.tree)
        hinted = ast.parse(subjects.with_type_hints(subject))
        for node in ast.walk(hinted):
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.arg):
                node.annotation = None
        assert ast.dump(hinted) == ast.dump(subject.tree)


def test_written_tests_pass_on_their_function() -> None:
    for item in filled(np.random.default_rng(3)):
        if item.subject.calls:
            space: dict[str, object] = {}
            exec(f"{item.subject.source}\n\n\n{tasks.test_code(item.subject)}\ntest_{item.subject.name}()", space)


def test_explanation_states_each_statement_in_order() -> None:
    source = (
        "def find(items, wanted):\n    for i, item in enumerate(items):\n        if item == wanted:\n"
        '            return i\n    raise KeyError("x")'
    )
    assert explain(source) == (
        "`find` takes `items` and `wanted`. For each `i, item` in `enumerate(items)`, if `item == wanted`, "
        "it returns `i`. "
        'It raises `KeyError("x")`.'
    )
    assert explain("def f():\n    yield 1") is None


def test_corpus_functions_lose_their_docstring_and_keep_its_examples() -> None:
    (bare, shown), *others = list(corpus_functions.subjects_of(FILE))
    assert not others
    assert bare.source.startswith("def grow(values, step):\n    result = []")
    assert bare.summary == "return the values made larger"
    assert shown is not None
    assert shown.calls == (("[1, 2], 3", "[4, 5]"),)
    assert ">>> grow" in shown.source


def test_token_ids_are_those_of_the_chat_prompt(conversations: list[Conversation]) -> None:
    tokenizer = Tokenizer.from_file(NANO / "tokenizer.model")
    for item in sorted(conversations, key=lambda item: -len(item.turns))[:40]:
        packed = pack(item, tokenizer.encode)
        messages, answers = list[dict[str, str]](), list[int]()
        for turn in item.turns:
            messages.append({"role": "user", "content": turn.question})
            prompt = chat_prompt(tokenizer, messages, max_prompt_tokens=100_000).token_ids
            assert packed.token_ids[: len(prompt)].tolist() == prompt
            answer = [*tokenizer.encode(turn.answer), tokenizer.end_of_turn_id]
            answers += range(len(prompt), len(prompt) + len(answer))
            assert packed.token_ids[len(prompt) : len(prompt) + len(answer)].tolist() == answer
            messages.append({"role": "assistant", "content": turn.answer})
        assert np.flatnonzero(packed.weights).tolist() == answers


def test_no_conversation_is_like_a_question_of_the_evaluation(conversations: list[Conversation]) -> None:
    questions = read_questions()
    index = QuestionIndex(questions)
    assert not any(index.is_like_a_question(item) for item in conversations)
    for question in questions:
        assert index.is_like_a_question(Conversation("x", (Turn("hi", "ho"), Turn(question.ask.upper(), "ho"))))
        if question.solution:
            reindented = question.solution.replace("    ", "\t").replace("'", '"')
            assert index.is_like_a_question(Conversation("x", (Turn("hi", f"Here:\n```python\n{reindented}\n```"),)))
    assert not index.is_like_a_question(Conversation("x", (Turn("write a function", "def f(x): return x"),)))
