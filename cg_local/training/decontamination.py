"""Finds training text that repeats an evaluation set.

Owns the n-gram index of evaluation problems and the test of one text against it. It does not read the corpus.
Invariant: the comparison ignores white space, so a reindented or rewrapped copy is still found.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path

from cg_local.errors import TrainingError

NUM_WORDS = 10
"""Words in a row that count as a copy. GPT-3 and PaLM use 13 and 8; 10 lies between and still spares common idioms."""

EVALUATION_FIELDS = ("prompt", "canonical_solution", "suffix")


def word_runs(text: str, num_words: int = NUM_WORDS) -> set[int]:
    """Hash every run of `num_words` consecutive words.

    Args:
        text: any text; letters, digits and underscores make words, every other visible character is a word of its own
            unless it is a quote mark, which restyling changes.
        num_words: length of a run.

    Returns:
        The hashes; empty where the text has fewer than `num_words` words or the runs hold fewer than 25 letters, since
        runs of brackets and numbers are common to unrelated programs.
    """
    words = re.findall(r"\w+|[^\w\s'\"]", text)
    runs = (words[start : start + num_words] for start in range(len(words) - num_words + 1))
    return {hash(tuple(run)) for run in runs if sum(char.isalpha() for word in run for char in word) >= 25}


class EvaluationIndex:
    """The word runs of evaluation problems that must not be trained on.

    Hashes are Python's own and thus differ between processes; the index is built anew in each run.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Index `texts`, each a prompt, a solution or a part of one."""
        self.runs: set[int] = set()
        for text in texts:
            self.runs |= word_runs(text)

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> EvaluationIndex:
        """Index the problems of files in the layout of OpenAI's HumanEval (MIT licence).

        Args:
            paths: `.jsonl` or `.jsonl.gz` files with one JSON object a line; those of `EVALUATION_FIELDS` count.

        Raises:
            TrainingError: a file cannot be read, or is no such file.
        """
        texts: list[str] = []
        for path in paths:
            try:
                with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as lines:
                    problems = [json.loads(line) for line in lines]
            except (OSError, EOFError, ValueError) as error:
                raise TrainingError(f"{path}: not readable as JSON lines of evaluation problems: {error}.") from error
            texts += [problem[field] for problem in problems for field in EVALUATION_FIELDS if problem.get(field)]
        return cls(texts)

    def is_contaminated(self, text: str) -> bool:
        """Whether `text` shares at least one word run with an evaluation problem."""
        return not self.runs.isdisjoint(word_runs(text))
