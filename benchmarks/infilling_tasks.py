"""The HumanEval infilling tasks: reading them, building their check programs, and scoring completions.

This file owns the data format and the meaning of the figures. It runs no model and no program. Invariant: the kind of
the tasks comes from their ids, never from the file's name, and a completion is joined to its surroundings as it is.

In every single-line and multi-line task the prompt and the canonical solution end with a newline: the newline belongs
to the completion. A cut at the first newline must keep it, or two lines are glued together.

Source: openai/human-eval-infilling, README and human_eval_infilling/{data,execution}.py. Its data.py asks
for HumanEval-RandomSpan.jsonl.gz, but the published file is HumanEval-RandomSpanInfilling.jsonl.gz: here the name of a
file means nothing.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox import Outcome

# Number of published tasks by the first part of their ids. Random spans are left out: they end within lines.
NUM_PUBLISHED = {"SingleLineInfilling": 1033, "MultiLineInfilling": 5815}
TEXT_FIELDS = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")
# Two-sided 95 % of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Task:
    """One gap of a program.

    Attributes:
        task_id: such as "SingleLineInfilling/HumanEval/0/L3".
        entry_point: the function under test.
        prompt, suffix: the text on both sides of the gap.
        canonical_solution: the original text of the gap.
        test: source that defines `check(candidate)`.
    """

    task_id: str
    entry_point: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str

    @property
    def kind(self) -> str:
        """Return "SingleLineInfilling" or "MultiLineInfilling"."""
        return self.task_id.partition("/")[0]

    def check_program(self, completion: str) -> str:
        """Return the program that runs to its end only if the completion is right."""
        return f"{self.prompt}{completion}{self.suffix}\n{self.test}\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class Score:
    """Figures of one variant of the completions; rates are fractions of all tasks.

    Attributes:
        num_tasks: how many were attempted.
        pass_at_1: programs that ran to their end; with one completion a task, the unbiased estimator is this mean.
        pass_at_1_low, pass_at_1_high: Wilson's 95 % interval.
        exact_match: completions equal to the canonical solution, every character.
        exact_match_stripped: the same after removing white space at both ends' right side.
        ended: answers that ended before the bound on their tokens; None where nothing was generated.
        repeats_suffix: completions that write again what follows the gap; see `repeats_suffix`.
        outcomes: number of programs by how they ended.
    """

    num_tasks: int
    pass_at_1: float
    pass_at_1_low: float
    pass_at_1_high: float
    exact_match: float
    exact_match_stripped: float
    ended: float | None
    repeats_suffix: float
    outcomes: dict[str, int]


def read_tasks(path: Path) -> list[Task]:
    """Read a .jsonl.gz (or .jsonl) file of infilling tasks, in the file's order.

    Raises:
        ValueError: no such file, cut, not JSON lines, another data set, two kinds in one file, or an id twice.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; {_siblings(path)}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as gzip or UTF-8 text ({error}); fetch it again") from error
    tasks = [_task(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not tasks:
        raise ValueError(f"{path}: holds no task; fetch it again")
    kinds = sorted({task.kind for task in tasks})
    if len(kinds) > 1 or kinds[0] not in NUM_PUBLISHED:
        raise ValueError(f"{path}: tasks of kind {', '.join(kinds)}; needed is one of {', '.join(NUM_PUBLISHED)}")
    if len({task.task_id for task in tasks}) < len(tasks):
        raise ValueError(f"{path}: a task id occurs twice; fetch it again")
    return tasks


def line_prediction(text: str) -> str:
    """Return a line's text with its newline, which a gap between two lines needs; "" stays empty."""
    return text if not text or text.endswith("\n") else text + "\n"


def repeats_suffix(completion: str, suffix: str) -> bool:
    """Whether a completion ends with the next line of the file, or holds its next two lines one after the other.

    Blank lines and blanks at the ends of lines do not count.
    """
    written, following = ([line.rstrip() for line in text.split("\n") if line.strip()] for text in (completion, suffix))
    if not written or not following:
        return False
    return written[-1] == following[0] or following[:2] in [written[i : i + 2] for i in range(len(written) - 1)]


def score(
    tasks: Sequence[Task],
    completions: Sequence[str],
    outcomes: Sequence[Outcome],
    ended: Sequence[bool] | None = None,
) -> Score:
    """Compute the figures of one completion for each task; `ended` tells which ended before the bound on tokens."""
    count = len(tasks)
    passed = sum(outcome.passed for outcome in outcomes)
    pairs = [(task.canonical_solution, text) for task, text in zip(tasks, completions, strict=True)]
    low, high = wilson_interval(passed, count)
    return Score(
        num_tasks=count,
        pass_at_1=passed / count,
        pass_at_1_low=low,
        pass_at_1_high=high,
        exact_match=sum(wanted == text for wanted, text in pairs) / count,
        exact_match_stripped=sum(wanted.rstrip() == text.rstrip() for wanted, text in pairs) / count,
        ended=sum(ended) / count if ended is not None else None,
        repeats_suffix=sum(repeats_suffix(text, task.suffix) for task, text in zip(tasks, completions, strict=True))
        / count,
        outcomes=dict(Counter(outcome.reason for outcome in outcomes).most_common()),
    )


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    mean, spread = successes / count, Z_95 * Z_95 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(mean * (1 - mean) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _task(line: str, where: str) -> Task:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); fetch the file again") from error
    missing = [name for name in TEXT_FIELDS if not isinstance(values, dict) or not isinstance(values.get(name), str)]
    if missing:
        raise ValueError(f"{where}: no text {', '.join(missing)}; give a file of human-eval-infilling")
    return Task(**{name: values[name] for name in TEXT_FIELDS})


def _siblings(path: Path) -> str:
    """Say which data files stand where one was looked for."""
    names = sorted(found.name for found in path.parent.glob("*.jsonl*")) if path.parent.is_dir() else []
    if names:
        return f"{path.parent} has {', '.join(names[:5])}"
    return "fetch it from https://github.com/openai/human-eval-infilling (data/)"
