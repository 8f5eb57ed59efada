"""Second questions: what people ask about the function that was just written.

Owns their wordings. Invariant: a follow-up needs the turn before it, since it does not show the code again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from cg_local.training.instruction.conversation import Turn
from cg_local.training.instruction.families import pick
from cg_local.training.instruction.subjects import Subject, with_type_hints
from cg_local.training.instruction.tasks import answer, documented, explained, rename_subject, test_code, used

DOCSTRING = (
    "Add a docstring.",
    "Now add a docstring.",
    "Can you add a docstring?",
    "and with a docstring?",
    "Document it.",
)
HINTS = ("Add type hints.", "Now add type hints.", "Can you add types?", "with type hints please", "Annotate it.")
EXPLAIN = (
    "Explain it.",
    "How does it work?",
    "What does it do?",
    "Explain this, please.",
    "Can you explain it?",
    "explain",
)
TEST = ("Write a test for it.", "Now write a test.", "Can you write a test?", "Add a test.", "How do I test it?")
USE = ("How do I call it?", "How do I use it?", "Give me an example.", "Show me an example.", "Example?")
RENAME = (
    "Rename {old} to {new}.",
    "Now rename {old} to {new}.",
    "Please call {old} {new}.",
    "Use {new} instead of {old}.",
)


def docstring(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """The function with a docstring."""
    if not subject.summary or subject.function is None:
        return None
    code = documented(subject)
    turn = Turn(pick(rng, DOCSTRING), answer(f"Here is `{subject.name}` with a docstring.", code))
    return turn, replace(subject, source=code, summary=None)


def hints(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """The function with type hints."""
    if not subject.types or subject.function is None:
        return None
    code = with_type_hints(subject)
    turn = Turn(pick(rng, HINTS), answer(f"Here is `{subject.name}` with type hints.", code))
    return turn, replace(subject, source=code, types=())


def explanation(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """What the function does."""
    text = explained(subject)
    return (Turn(pick(rng, EXPLAIN), text), subject) if text else None


def test(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """A test of the function."""
    if not subject.calls:
        return None
    return Turn(pick(rng, TEST), answer(f"Here is a test for `{subject.name}`.", test_code(subject))), subject


def use(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """An example call."""
    return (Turn(pick(rng, USE), used(subject)), subject) if subject.calls else None


def renaming(subject: Subject, rng: np.random.Generator) -> tuple[Turn, Subject] | None:
    """The function with another name in it."""
    changed = rename_subject(subject, rng)
    if changed is None:
        return None
    old, new, source = changed
    name = new if old == subject.name else subject.name
    types = tuple((new if argument == old else argument, kind) for argument, kind in subject.types)
    turn = Turn(pick(rng, RENAME).format(old=old, new=new), answer(f"I renamed `{old}` to `{new}`.", source))
    # A summary may speak of the old name, so what follows goes without.
    return turn, replace(subject, name=name, source=source, types=types, summary=None)


FOLLOW_UPS: Mapping[str, Callable[[Subject, np.random.Generator], tuple[Turn, Subject] | None]] = {
    "docstring": docstring,
    "hints": hints,
    "explain": explanation,
    "test": test,
    "use": use,
    "rename": renaming,
}
"""Follow-ups by kind: the turn, and the function as it stands after it."""
