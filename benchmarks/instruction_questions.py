#!/usr/bin/env python3
"""Fifty fixed questions to a chat model: does the code parse, does the answer end by itself, is it right.

This file owns the command and the figures. The questions and their checks are those of
`cg_local.training.instruction.questions`, the walls around programs `sandbox`'s. Invariant: every question counts.

    python benchmarks/instruction_questions.py --model nano-it --scheme q4
    python benchmarks/instruction_questions.py --check-scorer

The table goes to stderr, the result to stdout as one line of JSON; `--answers FILE` keeps what the model wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_loading import one_line
from sandbox import Sandbox

import cg_local
from cg_local.bench.cards import weights_digest
from cg_local.config import SamplingParams
from cg_local.errors import CgLocalError
from cg_local.training.instruction.conversation import fenced
from cg_local.training.instruction.questions import Question, read_questions

MAX_TOKENS = 256
STOPPED = "eos"
"""Stop reason of an answer that the model ended itself, with <end_of_turn> or <eos>."""


@dataclass(frozen=True)
class Result:
    """One question's outcome.

    Attributes:
        question: what was asked.
        answer: the model's text.
        has_parsed: all code blocks are Python and there is at least one; None where no code was asked for.
        has_stopped: the answer ended by itself within MAX_TOKENS.
        has_passed: the question's check ran to its end.
    """

    question: Question
    answer: str
    has_parsed: bool | None
    has_stopped: bool
    has_passed: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, ask, print the table and the result."""
    options = parse_options(arguments)
    try:
        sandbox, questions = Sandbox(), read_questions()
        result: dict[str, object] = {"benchmark": "instruction_questions", "isolation": sandbox.isolation}
        if options.check_scorer:
            answers = [(fenced(question.solution), STOPPED) for question in questions]
        else:
            model = cg_local.load(options.model, scheme=options.scheme)
            digest = weights_digest(model.path)
            # A folder's path tells of the machine, and nothing of the model.
            result |= {
                "model": Path(model.name).name,
                "scheme": model.scheme,
                "digest": digest,
                "max_tokens": MAX_TOKENS,
            }
            answers = [ask(model, question) for question in questions]
        results = judge(questions, answers, sandbox)
    except (CgLocalError, ValueError, OSError, RuntimeError) as error:
        print(f"instruction_questions: {one_line(error)}", file=sys.stderr)
        return 1
    print(table(results), file=sys.stderr)
    if options.answers:
        options.answers.write_text("\n".join(transcript(results)), encoding="utf-8")
    print(json.dumps(result | {"scores": scores(results)}))
    return 0


def ask(model: cg_local.LocalModel, question: Question) -> tuple[str, str]:
    """The greedy answer to one question and why it ended."""
    answer = model.chat(question.messages, params=SamplingParams(max_tokens=MAX_TOKENS))
    return answer.text, answer.stop_reason


def judge(questions: Sequence[Question], answers: Sequence[tuple[str, str]], sandbox: Sandbox) -> list[Result]:
    """Judge every answer; the checks run in the sandbox."""
    programs = [question.program(text) for question, (text, _) in zip(questions, answers, strict=True)]
    outcomes = sandbox.run_all(programs)
    return [
        Result(
            question,
            text,
            question.parses(text) if question.wants_code else None,
            reason == STOPPED,
            outcome.passed,
        )
        for question, (text, reason), outcome in zip(questions, answers, outcomes, strict=True)
    ]


def figures(results: Sequence[Result]) -> dict[str, int]:
    """Counts over some questions."""
    return {
        "questions": len(results),
        "asked_for_code": sum(item.has_parsed is not None for item in results),
        "parsed": sum(item.has_parsed is True for item in results),
        "stopped": sum(item.has_stopped for item in results),
        "passed": sum(item.has_passed for item in results),
    }


def scores(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Counts by kind, over the questions of unfamiliar functions, and over all."""
    kinds = dict.fromkeys(item.question.kind for item in results)
    groups = {kind: [item for item in results if item.question.kind == kind] for kind in kinds}
    groups["of these unfamiliar"] = [item for item in results if item.question.is_unfamiliar]
    groups["all"] = list(results)
    return {name: figures(group) for name, group in groups.items()}


def table(results: Sequence[Result]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| asked for | questions | code parses | stops by itself | passes its check |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, row in scores(results).items():
        parsed = f"{row['parsed']} of {row['asked_for_code']}" if row["asked_for_code"] else "-"
        lines.append(f"| {name} | {row['questions']} | {parsed} | {row['stopped']} | {row['passed']} |")
    return "\n".join(lines)


def transcript(results: Iterable[Result]) -> Iterable[str]:
    """Questions, answers and verdicts as text."""
    for number, item in enumerate(results, start=1):
        verdict = "passes" if item.has_passed else "fails"
        yield f"#### {number}. {item.question.kind}: {verdict}\n\n> {item.question.ask}\n\n{item.answer}\n"


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Fifty fixed questions to a chat model.")
    add = parser.add_argument
    add("--model", default="nano-it", help="model folder, or a carried model's name (default: nano-it)")
    add("--scheme", help="for a carried model: q4, q8 or bf16 (default: q4)")
    add("--answers", type=Path, metavar="FILE", help="write questions, answers and verdicts")
    add("--check-scorer", action="store_true", help="judge the stored solutions instead of a model's answers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
