"""Questions about a function and their answers.

Owns the wordings and the style of answers: one or two short sentences, then one block of code. Which functions are
asked about is decided elsewhere. Invariant: an answer's code follows from the question; where the question leaves a
name open, the answer takes the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cg_local.training.instruction import mutations
from cg_local.training.instruction.conversation import Turn, fenced
from cg_local.training.instruction.explain import explain
from cg_local.training.instruction.families import FIELDS, NOUNS, Family, Filled, fill, pick
from cg_local.training.instruction.subjects import (
    Subject,
    renamable,
    rename,
    sentence,
    third_person,
    with_docstring,
    with_type_hints,
)  # fmt: skip

WRITE_OPEN = (
    "Write a function that {does}.", "Write a function to {do}.", "Write a Python function that {does}.", "{Do}.",
    "{do}", "How do I {do}?", "How can I {do} in Python?", "I need a function to {do}.", "python function to {do}",
    "Can you write a function that {does}?", "Please write a function that {does}.", "Give me a function to {do}.",
    "Show me how to {do}.", "Create a function that {does}.", "Implement a function that {does}.", "code to {do}",
    "I want to {do}.", "Help me to {do}.", "write a function which {does}", "write function to {do}",
    "Could you please {do}?", "function that {does}", "Define a function that {does}.", "Make a function to {do}",
)  # fmt: skip
WRITE_NAMED = (
    "Write a function called {name} that {does}.", "Write a function `{name}` that {does}.",
    "Write a function {name} to {do}.", "Define {name}, a function that {does}.", "I need a function {name} to {do}.",
    "Write a Python function named {name} which {does}.", "Create a function {name} that {does}.",
    "Implement {name}: it {does}.", "Please write {name}, which {does}.", "Make a function called {name} to {do}.",
)  # fmt: skip
WRITE_SIGNED = (
    "Write a function {signature} that {does}.", "Write `{signature}`, which {does}.", "Implement {signature}: {do}.",
    "Define `{signature}` to {do}.", "Write the function {signature}. It {does}.",
    "Write a function {name} with {arguments} that {does}.", "Create {signature} that {does}.",
)  # fmt: skip
WRITE_CODE = (
    "{Do}.", "{do}", "How do I {do}?", "How can I {do} in Python?", "Show me how to {do}.", "Please {do}.",
    "Can you {do}?", "Write code to {do}.", "python code to {do}", "Give me code to {do}.", "I want to {do}.",
    "Help me to {do}.", "Write a program to {do}.",
)  # fmt: skip

FIX = (
    "Fix: {code}", "Fix this: {code}", "Fix this function: {code}", "Fix the bug: {code}", "What is wrong here? {code}",
    "There is a bug in this code. {code}", "This code does not work: {code}", "Debug this: {code}", "fix {code}",
    "Find the bug. {code}", "Can you fix this? {code}", "Please correct this function. {code}", "Repair this: {code}",
    "This gives a wrong result: {code}", "What is the bug in this function? {code}", "Correct the mistake: {code}",
    "{code} This does not work.", "{code} Find the mistake.", "Why does this not work? {code}", "fix my code: {code}",
)  # fmt: skip
FIX_MEANT = (
    "This should {do}, but it does not. {code}", "This function should {do}. Fix it. {code}",
    "{code} It should {do}. What is wrong?", "I want to {do}, but this fails: {code}",
)  # fmt: skip
RENAME = (
    "Rename {old} to {new}: {code}", "Rename `{old}` to `{new}` in this code. {code}", "Rename {old} to {new}. {code}",
    "Change the name {old} to {new}: {code}", "Use the name {new} instead of {old}. {code}",
    "Please rename {old} to {new} in {code}", "rename {old} to {new} in {code}",
    "Replace the name {old} by {new}: {code}",
    "Call it {new} instead of {old}: {code}",
)  # fmt: skip
DOCSTRING = (
    "Add a docstring to this function. {code}", "Add a docstring: {code}", "Write a docstring for {code}",
    "Document this function: {code}", "Add documentation to this: {code}", "add a docstring to {code}",
    "Please add a docstring. {code}", "Can you document this? {code}", "This needs a docstring: {code}",
)  # fmt: skip
HINTS = (
    "Add type hints: {code}", "Add type hints to this function. {code}", "Annotate this function with types. {code}",
    "add types to {code}", "Please add type annotations. {code}", "Which types does this need? {code}",
)  # fmt: skip
EXPLAIN = (
    "Explain this code: {code}", "Explain: {code}", "What does this do? {code}", "What does this function do? {code}",
    "Explain this function. {code}", "Please explain {code}", "How does this work? {code}", "{code} What does it do?",
    "Describe this function: {code}", "Tell me what this code does. {code}",
)  # fmt: skip
TEST = (
    "Write a test for this function. {code}", "Write a test: {code}", "Write a unit test for {code}",
    "Test this: {code}",
    "Please write tests for this. {code}", "How do I test this function? {code}", "Add a test for {code}",
    "Write a pytest test for this: {code}",
)  # fmt: skip
USE = (
    "How do I call this function? {code}", "Show me how to use this. {code}", "Give me an example call: {code}",
    "How do I use {code}", "Call this function: {code}",
)  # fmt: skip
COMPLETE = (
    "Complete this function: {code}", "Complete: {code}", "Finish this function. {code}", "Fill in the body: {code}",
    "Complete the code. {code}", "Implement this: {code}", "Please finish this: {code}", "Write the rest: {code}",
)  # fmt: skip
THIS = ("it", "this function", "this", "the function")

ONE_LINE_SHARE, BARE_SHARE = 0.25, 0.25
"""Shares of questions that give short code in one line, and code without a fence."""

MEANT_SHARE = 0.2
"""Share of bug questions that say what the code should do, where that is known."""


def fill_wording(template: str, do: str, **fields: str) -> str:
    """A wording with its fields: {do}, {does}, {Do} for the summary, and what else is given."""
    return template.format(do=do, does=third_person(do), Do=do[:1].upper() + do[1:], **fields)


def show(template: str, code: str, rng: np.random.Generator) -> str:
    """A question with code in it, fenced, bare on lines of its own, or behind the words if it is short."""
    lines = code.split("\n")
    draw = rng.random()
    if draw < ONE_LINE_SHARE and len(lines) == 2 and lines[0].startswith("def ") and lines[0].endswith(":"):
        shown = f"{lines[0]} {lines[1].strip()}"
        return template.replace("{code}", f"`{shown}`" if rng.random() < 0.4 else shown)
    shown = code if draw < ONE_LINE_SHARE + BARE_SHARE else fenced(code)
    before, _, after = template.partition("{code}")
    return "\n\n".join(part.strip() for part in (before, shown, after) if part.strip())


def answer(text: str, code: str) -> str:
    """An answer in the common form."""
    return f"{text}\n\n{fenced(code)}"


def write(family: Family, rng: np.random.Generator) -> tuple[Filled, Turn]:
    """A request to write a function (or other code) of a family, and what was written."""
    draw = rng.random()
    if family.whole:
        filled = fill(family, rng)
        question = fill_wording(pick(rng, WRITE_CODE), pick(rng, filled.requests))
        text = (
            f"Here is the class `{filled.subject.name}`."
            if filled.subject.name
            else f"Here is how to {filled.requests[0]}."
        )
        return filled, Turn(question, answer(text, filled.subject.source))
    is_named, is_signed = draw > 0.45, draw > 0.75
    filled = fill(family, rng, own_name=is_named, own_arguments=is_signed)
    subject = filled.subject
    number = int(rng.integers(len(filled.requests)))
    wordings = WRITE_SIGNED if is_signed else WRITE_NAMED if is_named else WRITE_OPEN
    arguments = [name for name, _ in subject.types]
    listed = " and ".join(arguments) if len(arguments) < 3 else ", ".join(arguments)
    plural = "arguments" if len(arguments) > 1 else "argument"
    question = fill_wording(
        pick(rng, wordings),
        filled.requests[number],
        name=subject.name,
        signature=f"{subject.name}({', '.join(arguments)})",
        arguments=f"the {plural} {listed}" if arguments else "no arguments",
    )
    return filled, Turn(question, written(subject))


def written(subject: Subject) -> str:
    """The answer that presents a function."""
    assert subject.summary is not None
    return answer(sentence(f"`{subject.name}` {third_person(subject.summary)}"), subject.source)


def fix(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A planted bug and its repair; None if the function has no place for one."""
    bugs = mutations.plant(subject.source)
    for kind in rng.permutation(sorted(bugs)):
        if kind not in mutations.EVIDENT and not subject.calls:
            continue
        bug = pick(rng, bugs[str(kind)])
        if subject.calls and not mutations.is_felt(subject.name, bug, subject.calls):
            continue
        template = pick(rng, FIX)
        if subject.summary and rng.random() < MEANT_SHARE:
            template = pick(rng, FIX_MEANT).replace("{do}", subject.summary.replace("{", "").replace("}", ""))
        return Turn(show(template, bug.source, rng), answer(bug.remedy, subject.source))
    return None


def renaming(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A name and the one to put in its place."""
    changed = rename_subject(subject, rng)
    if changed is None:
        return None
    old, new, source = changed
    template = pick(rng, RENAME).replace("{old}", old).replace("{new}", new)
    return Turn(show(template, subject.source, rng), answer(f"I renamed `{old}` to `{new}`.", source))


def rename_subject(subject: Subject, rng: np.random.Generator) -> tuple[str, str, str] | None:
    """Draw an old and a new name, and give the changed source."""
    names = renamable(subject.source)
    if not names:
        return None
    old = pick(rng, names)
    new = (
        pick(rng, (*NOUNS, *FIELDS)) if rng.random() < 0.6 else f"{pick(rng, ('new', 'my', 'the', 'all', 'num'))}_{old}"
    )
    if new in subject.source:
        return None
    return old, new, rename(subject.source, old, new)


def documented(subject: Subject) -> str:
    """The source with the summary as docstring."""
    assert subject.summary is not None
    return with_docstring(subject.source, sentence(subject.summary))


def docstring(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A function and the same with a docstring."""
    if not subject.summary or subject.function is None:
        return None
    text = f"Here is `{subject.name}` with a docstring."
    return Turn(show(pick(rng, DOCSTRING), subject.source, rng), answer(text, documented(subject)))


def hints(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A function and the same with type hints."""
    if not subject.types or subject.function is None:
        return None
    text = f"Here is `{subject.name}` with type hints."
    return Turn(show(pick(rng, HINTS), subject.source, rng), answer(text, with_type_hints(subject)))


def explained(subject: Subject) -> str | None:
    """The purpose, if it is known, and the statements."""
    steps = explain(subject.source)
    if steps is None or subject.summary is None:
        return steps
    return f"{sentence(f'`{subject.name}` {third_person(subject.summary)}')} {steps}"


def explanation(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A function and what it does."""
    text = explained(subject)
    return Turn(show(pick(rng, EXPLAIN), subject.source, rng), text) if text else None


def test_code(subject: Subject) -> str:
    """A test made of the example calls."""
    lines = [f"def test_{subject.name}():"]
    for arguments, result in subject.calls:
        call = f"{subject.name}({arguments})"
        check = {"True": call, "False": f"not {call}"}.get(result, f"{call} == {result}".replace("'", '"'))
        lines.append(f"    assert {check}")
    return "\n".join(lines)


def test(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A function and a test of it."""
    if not subject.calls:
        return None
    text = f"Here is a test for `{subject.name}`."
    return Turn(show(pick(rng, TEST), subject.source, rng), answer(text, test_code(subject)))


def use(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """A function and an example call."""
    if not subject.calls:
        return None
    return Turn(show(pick(rng, USE), subject.source, rng), used(subject))


def used(subject: Subject) -> str:
    """The answer that shows one call and its result."""
    arguments, result = subject.calls[0]
    return answer("For example:", f"print({subject.name}({arguments}))  # {result}")


def complete(subject: Subject, rng: np.random.Generator) -> Turn | None:
    """The head of a function with its docstring, or its first lines, and the whole."""
    node = subject.function
    if node is None or not subject.summary:
        return None
    whole = documented(subject)
    end = node.body[0].lineno  # the docstring stands before the first statement
    lines = whole.split("\n")
    if len(lines) > end + 2 and rng.random() < 0.4:
        end += int(rng.integers(1, len(lines) - end))
    shown = "\n".join(lines[:end])
    return Turn(show(pick(rng, COMPLETE), shown, rng), answer(f"Here is the whole of `{subject.name}`.", whole))


TASKS: Mapping[str, Callable[[Subject, np.random.Generator], Turn | None]] = {
    "fix": fix,
    "rename": renaming,
    "docstring": docstring,
    "hints": hints,
    "explain": explanation,
    "test": test,
    "use": use,
    "complete": complete,
}
"""Tasks on a function that the question shows, by kind."""
