"""Makes the conversations to tune on.

    python -m cg_local.training.instruction.pairs pairs.jsonl --corpus DIR [--count N] [--seed S]

Owns the mixture, the removal of duplicates, and the exclusion of the evaluation's questions. Wordings and answers are
made elsewhere. Invariant: the file depends on the corpus, the count and the seed alone, and no conversation in it
shares a run of ten words with a question of the evaluation or with its solution.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cg_local.training.instruction.conversation import Conversation, Turn
from cg_local.training.instruction.corpus_functions import read_subjects
from cg_local.training.instruction.families import Family, fill, load_families, pick
from cg_local.training.instruction.follow_ups import FOLLOW_UPS
from cg_local.training.instruction.questions import QuestionIndex, read_questions
from cg_local.training.instruction.small_talk import small_talk
from cg_local.training.instruction.subjects import Subject
from cg_local.training.instruction.tasks import TASKS, test, write, written

SHARES: Mapping[str, float] = {
    "write": 0.40, "fix": 0.15, "rename": 0.07, "docstring": 0.05, "hints": 0.04, "explain": 0.06, "test": 0.06,
    "use": 0.03, "complete": 0.05, "corpus": 0.09,
}  # fmt: skip
"""Shares of first questions beside small talk, of which every wording is taken once."""

CORPUS_TASKS: Mapping[str, float] = {
    "fix": 0.25, "rename": 0.25, "explain": 0.15, "docstring": 0.1, "complete": 0.05, "write": 0.05, "test": 0.15,
}  # fmt: skip
FOLLOW_UP_RATE, GREETING_RATE, THANKS_RATE = 0.35, 0.04, 0.06
MAX_TALK_PER_ANSWER = 70
MAX_CHARS = 3000


@dataclass(frozen=True)
class Sources:
    """What questions are made from.

    Attributes:
        families: templates.
        bare: functions of the corpus without docstrings.
        shown: functions of the corpus with examples in their docstrings.
        talk: small talk by answer.
    """

    families: Sequence[Family]
    bare: Sequence[Subject]
    shown: Sequence[Subject]
    talk: Mapping[str, Sequence[Conversation]]


def draw(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    """One key of `shares`, which need not add up to 1."""
    weights = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=weights / weights.sum()))


def first_turn(sources: Sources, rng: np.random.Generator) -> tuple[str, Turn, Subject] | None:
    """Kind, question and answer, and the function that was talked about; None where a draw does not work out."""
    kind = draw(SHARES, rng)
    if kind == "corpus":
        return corpus_turn(sources, rng)
    family = pick(rng, sources.families)
    if kind == "write":
        filled, turn = write(family, rng)
        return kind, turn, filled.subject
    if family.whole and kind not in ("fix", "rename"):
        return None
    is_fitting = kind in ("fix", "test", "complete")
    subject = fill(family, rng, own_name=True, own_arguments=bool(rng.random() < 0.7), is_fitting=is_fitting).subject
    asked = TASKS[kind](subject, rng)
    return None if asked is None else (kind, asked, subject)


def corpus_turn(sources: Sources, rng: np.random.Generator) -> tuple[str, Turn, Subject] | None:
    """The same about a function of the corpus."""
    kind = draw(CORPUS_TASKS, rng)
    subjects = sources.shown if kind == "test" else sources.bare
    if not subjects:
        return None
    subject: Subject = pick(rng, subjects)
    if kind == "write":
        if not subject.summary or subject.function is None:
            return None
        head = subject.source.split("\n")[0].removeprefix("def ").rstrip(":")
        question = (
            f"Write the function `{head}` with this docstring: {subject.summary[:1].upper()}{subject.summary[1:]}."
        )
        return "corpus write", Turn(question, written(subject)), subject
    turn = test(subject, rng) if kind == "test" else TASKS[kind](subject, rng)
    return None if turn is None else (f"corpus {kind}", turn, subject)


def conversation(sources: Sources, rng: np.random.Generator) -> Conversation | None:
    """A first question, and in some cases more turns around it."""
    drawn = first_turn(sources, rng)
    if drawn is None:
        return None
    kind, turn, subject = drawn
    turns = [turn]
    is_changed = kind.split()[-1] in ("write", "fix")
    while is_changed and len(turns) < 4 and rng.random() < FOLLOW_UP_RATE:
        followed = FOLLOW_UPS[str(rng.choice(list(FOLLOW_UPS)))](subject, rng)
        if followed is not None and followed[0].question not in [turn.question for turn in turns]:
            turns.append(followed[0])
            subject = followed[1]
    if rng.random() < GREETING_RATE:
        turns.insert(0, talk_turn(sources, "hello", rng))
    if rng.random() < THANKS_RATE:
        turns.append(talk_turn(sources, "thanks", rng))
    return Conversation(kind, tuple(turns))


def talk_turn(sources: Sources, ask: str, rng: np.random.Generator) -> Turn:
    """Small talk with the same answer as `ask` gets."""
    group = next(group for group in sources.talk.values() if any(item.turns[0].question == ask for item in group))
    turn: Turn = pick(rng, group).turns[0]
    return turn


def talk_by_answer() -> dict[str, list[Conversation]]:
    """Small talk grouped by answer."""
    groups: dict[str, list[Conversation]] = {}
    for item in small_talk():
        groups.setdefault(item.turns[0].answer, []).append(item)
    return groups


def talks(sources: Sources, rng: np.random.Generator) -> Iterator[Conversation]:
    """Small talk: the wordings of each answer up to a bound, one turn each, and two talks in a row now and then."""
    everything = [item for group in sources.talk.values() for item in group]
    for group in sources.talk.values():
        order = rng.permutation(len(group))[:MAX_TALK_PER_ANSWER]
        for item in (group[index] for index in order):
            second = pick(rng, everything).turns if rng.random() < 0.25 else ()
            yield Conversation(item.kind, item.turns + second)


def make_conversations(sources: Sources, index: QuestionIndex, count: int, seed: int) -> tuple[list[Conversation], int]:
    """The conversations, and how many were left out for being like a question of the evaluation.

    Args:
        sources: what to talk about.
        index: of the evaluation.
        count: conversations about code; small talk comes on top.
        seed: of everything drawn.
    """
    rng = np.random.default_rng(seed)
    kept: dict[tuple[Turn, ...], Conversation] = {}
    num_excluded = 0

    def offer(item: Conversation | None) -> None:
        nonlocal num_excluded
        if item is None or sum(len(turn.question + turn.answer) for turn in item.turns) > MAX_CHARS:
            return
        if index.is_like_a_question(item):
            num_excluded += 1
        else:
            kept.setdefault(item.turns, item)

    while len(kept) < count:
        offer(conversation(sources, rng))
    for item in talks(sources, rng):
        offer(item)
    conversations = list(kept.values())
    return [conversations[position] for position in rng.permutation(len(conversations))], num_excluded


def read_conversations(path: Path) -> list[Conversation]:
    """Read what `main` wrote."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [Conversation(record["kind"], tuple(Turn(**turn) for turn in record["turns"])) for record in records]


def main() -> None:
    """Command line entry; see the module's head."""
    parser = argparse.ArgumentParser(description="Make conversations to tune on.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that cg_local.training.prepare wrote")
    parser.add_argument("--count", type=int, default=36_000, help="conversations about code (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.12, help="of the corpus' files (default: %(default)s)")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in old packages
        bare, shown = read_subjects(options.corpus / "train.jsonl", options.share)
    sources = Sources(load_families(), bare, shown, talk_by_answer())
    index = QuestionIndex(read_questions())
    conversations, num_excluded = make_conversations(sources, index, options.count, options.seed)
    with options.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(item)) + "\n" for item in conversations)
    kinds = Counter(item.kind for item in conversations)
    print(f"{len(conversations):,} conversations, {num_excluded} left out for being like a question of the evaluation")
    print(f"from {len(bare):,} functions of the corpus, {len(shown):,} with examples, {len(sources.families)} families")
    print(", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common()))


if __name__ == "__main__":
    main()
