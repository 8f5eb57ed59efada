"""The questions that a tuned model is judged by, and the test of training data against them.

Owns `questions.toml` and what its checks can use. It neither asks a model nor runs a check: `benchmarks/` does.
Invariant: `QuestionIndex` knows a question and its solution whatever white space and quote marks they are written with.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cg_local.training.decontamination import word_runs
from cg_local.training.instruction.conversation import FENCE, Conversation, code_blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("questions.toml")

CODE_KINDS = ("write", "fix", "rename", "docstring", "hints", "test", "complete", "follow-up")
"""Kinds whose answer must hold code."""

PREAMBLE = """
import ast, builtins, inspect


def load():
    space = {}
    exec(code, space)
    return space


def only():
    return [value for value in load().values() if inspect.isfunction(value)][-1]


def printed():
    lines = []
    exec(code, {"print": lambda *parts, **_: lines.append(" ".join(map(str, parts)))})
    return "\\n".join(lines)


def same(first, second):
    return ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))


def docstring(source):
    return ast.get_docstring(ast.parse(source).body[0]) or ""


def same_but_docstring(source, original):
    tree = ast.parse(source)
    assert docstring(source).strip()
    del tree.body[0].body[0]
    return ast.dump(tree) == ast.dump(ast.parse(original))


def passes(source):
    space = {}
    exec(source, space)
    exec(code, space)
    tests = [value for name, value in space.items() if name.startswith("test") and inspect.isfunction(value)]
    assert tests
    try:
        for test in tests:
            test()
    except Exception:
        return False
    return True


def finds(right, wrong):
    return passes(right) and not passes(wrong)


def has(*parts):
    return all(part.lower() in prose.lower() for part in parts)


def has_any(*parts):
    return any(part.lower() in prose.lower() for part in parts)
"""
"""Functions for checks; `answer`, its `code` and its `prose` are set before."""


@dataclass(frozen=True)
class Question:
    """One question of the evaluation; the fields are described in `questions.toml`."""

    kind: str
    ask: str
    check: str
    solution: str = ""
    before: tuple[str, ...] = ()
    is_unfamiliar: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as `cg_local.prompts.chat_prompt` takes it."""
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate((*self.before, self.ask))]

    @property
    def wants_code(self) -> bool:
        """Whether the answer must hold code."""
        return self.kind in CODE_KINDS

    def parses(self, answer: str) -> bool:
        """Whether an answer holds code, and all of it is Python."""
        try:
            bodies = [ast.parse(block).body for block in code_blocks(answer)]
        except (SyntaxError, ValueError):
            return False
        return any(bodies)

    def program(self, answer: str) -> str:
        """The program that ends without an error if the answer is right."""
        code, prose = "\n".join(code_blocks(answer)), FENCE.sub("", answer + "\n")
        return f"answer, code, prose = {answer!r}, {code!r}, {prose!r}\n{PREAMBLE}\n{self.check.strip()}\n"


def read_questions(path: Path = FILE) -> list[Question]:
    """All questions in the order of the file."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    return [Question(**{**table, "before": tuple(table.get("before", ()))}) for table in tables]


def plain_words(text: str) -> str:
    """The words of a text in lower case with one space between; fences, quotes and white space do not count."""
    return " ".join(re.findall(r"\w+|[^\w\s'\"`.!?]", text.lower().replace("```python", "")))


class QuestionIndex:
    """Finds conversations that repeat a question of the evaluation, or its code."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Index the wordings and the solutions."""
        texts = [text for question in questions for text in (question.ask, question.solution) if text]
        self.asks = {plain_words(question.ask) for question in questions}
        self.codes = [f" {plain_words(question.solution)} " for question in questions if question.solution]
        self.runs = {run for text in texts for run in word_runs(text)}

    def is_like_a_question(self, conversation: Conversation) -> bool:
        """Whether a turn asks a question of the evaluation, shows its code, or shares a run of ten words with either.

        Args:
            conversation: candidate for the training data.
        """
        for turn in conversation.turns:
            if plain_words(turn.question) in self.asks:
                return True
            for text in (turn.question, turn.answer):
                words = f" {plain_words(text)} "
                if any(code in words for code in self.codes) or not self.runs.isdisjoint(word_runs(text)):
                    return True
        return False
