"""Families of simple functions, written as templates and filled in with names and numbers.

Owns the template files in `families/` and how they are filled in. It asks no questions about the result.
Invariant: the stated results of a function's example calls are those that the function itself returned.

A template file is TOML; a table is a family:
    names  names a function of it may have; the first is the one it gets when nobody asks for another
    args   slots of arguments; SLOTS has the type and the names of each
    do     what it does, in the infinitive; the first is the summary in answers, all are wordings of requests
    code   the body; `whole` instead is code that is no function
    calls  arguments of example calls, which are executed; head: an import; returns: type of the result
In all of them $x stands for the slot or constant x: see SLOTS and `constants`; $NAME is the function's name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cg_local.training.instruction.subjects import Subject

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("families")

NUMBER_NAMES = ("x", "number", "value", "num")
SLOTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "a": ("float", ("a", "x", "first", "left", "p")),
    "b": ("float", ("b", "y", "second", "right", "q")),
    "c": ("float", ("c", "z", "third")),
    "x": ("float", NUMBER_NAMES),
    "n": ("int", ("n", "number", "count", "num", "limit")),
    "numbers": ("list[int]", ("numbers", "values", "nums", "data", "xs", "scores", "prices")),
    "items": ("list", ("items", "elements", "data", "things", "entries", "objects")),
    "words": ("list[str]", ("words", "strings", "names", "texts", "terms")),
    "lines": ("list[str]", ("lines", "rows", "texts")),
    "lists": ("list[list]", ("lists", "nested", "rows", "groups")),
    "matrix": ("list[list]", ("matrix", "grid", "table")),
    "text": ("str", ("text", "string", "s", "message", "sentence", "phrase", "content")),
    "char": ("str", ("char", "letter", "character", "symbol")),
    "first": ("list", ("first", "left", "a", "one")),
    "second": ("list", ("second", "right", "b", "two")),
    "mapping": ("dict", ("mapping", "data", "d", "table", "scores", "prices", "ages")),
    "path": ("str", ("path", "filename", "file_path", "location")),
    "limit": ("int", ("limit", "threshold", "minimum", "bound")),
    "target": ("object", ("target", "wanted", "value", "needle")),
    "item": ("object", ("item", "value", "element")),
    "key": ("object", ("key", "field", "label")),
    "keys": ("list", ("keys", "names", "labels")),
    "values": ("list", ("values", "numbers", "results")),
    "default": ("object", ("default", "fallback", "other")),
    "low": ("float", ("low", "start", "lower")),
    "high": ("float", ("high", "end", "upper")),
    "name": ("str", ("name", "person", "user")),
    "factor": ("int", ("factor", "times", "scale")),
    "size": ("int", ("size", "length", "step")),
    "width": ("float", ("width", "w")),
    "height": ("float", ("height", "h")),
    "base": ("float", ("base", "x")),
    "part": ("float", ("part", "piece")),
    "data": ("object", ("data", "content", "obj")),
    "function": ("object", ("function", "func", "f")),
}
"""Type and names of the argument slots; a slot that is not here is an int, a float or a str and has its own name."""

OTHER_TYPES = {"exponent": "int", "year": "int", "score": "int", "shift": "int", "position": "int"}
TEXT_SLOTS = (
    "prefix", "suffix", "old", "new", "filename", "email", "folder", "source", "target", "first_name", "last_name",
)  # fmt: skip

NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 25, 50, 100)
LETTERS = "abcdefgilmnoprstuw"
WORDS = ("hello", "good morning", "done", "Python", "welcome", "ready", "bye", "yes", "error", "thank you")
CLASSES = (
    "Point", "Person", "Dog", "Cat", "Car", "Book", "User", "Item", "Order", "Player", "Student", "Employee", "Animal",
    "House", "Product", "Task", "Message", "Song", "Movie", "City", "Node", "Shape", "Team", "Game", "Vector", "Box",
)  # fmt: skip
FIELDS = (
    "name", "age", "x", "y", "price", "title", "author", "color", "size", "width", "height", "speed", "owner", "count",
    "year", "email", "score", "level", "weight", "length", "status", "brand", "text", "city", "id", "radius", "salary",
)  # fmt: skip
COMMON_NAMES = (
    "foo", "f", "compute", "process", "helper", "my_function", "solve", "run", "calculate", "func", "transform",
    "check",
    "get_result", "do_it", "work", "apply_rule", "convert", "handle", "task_one", "step_two", "evaluate", "operation",
)  # fmt: skip
VERBS = ("get", "make", "find", "compute", "build", "calc", "fetch", "show", "my", "quick", "test", "new", "do")
NOUNS = ("result", "value", "data", "items", "thing", "answer", "output", "number", "text", "list", "total", "part")


@dataclass(frozen=True)
class Family:
    """One table of a template file, as described in the module's head."""

    key: str
    do: tuple[str, ...]
    names: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    code: str = ""
    whole: str = ""
    head: str = ""
    calls: tuple[str, ...] = ()
    returns: str = ""


@dataclass(frozen=True)
class Filled:
    """A family with all slots filled.

    Attributes:
        subject: the code.
        requests: the wordings of what it does; the first is its summary.
        own_arguments: numbers of the requests that name the arguments.
    """

    subject: Subject
    requests: tuple[str, ...]
    own_arguments: frozenset[int]


def load_families() -> list[Family]:
    """All families, in the order of the files and tables."""
    families = []
    for path in sorted(FOLDER.glob("*.toml")):
        for key, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            fields: dict[str, Any] = {
                name: tuple(entry) if isinstance(entry, list) else entry for name, entry in table.items()
            }
            fields["args"] = tuple(str(table.get("args", "")).split())
            families.append(Family(key, **fields))
    return families


def type_of(slot: str, family: Family) -> str:
    """Type of an argument slot in a family."""
    if (slot in ("first", "second") and family.returns in ("str", "dict")) or family.key == "is_anagram":
        return "str" if family.returns != "dict" else "dict"
    if (slot in ("part", "target") and "text" in family.args) or (slot == "target" and family.key == "copy_file"):
        return "str"
    if slot in SLOTS:
        return SLOTS[slot][0]
    return "str" if slot in TEXT_SLOTS else OTHER_TYPES.get(slot, "float")


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of `choices`."""
    return choices[int(rng.integers(len(choices)))]


def constants(rng: np.random.Generator) -> dict[str, str]:
    """Draw the constants of a template.

    Returns:
        $k a number, $k0 = k - 1, $k1 = k + 1, $k2 = 2k; $c a letter; $W a text; $C and $D classes; $p, $q, $r fields.
    """
    number = pick(rng, NUMBERS)
    fields = [FIELDS[index] for index in rng.permutation(len(FIELDS))[:3]]
    classes = [CLASSES[index] for index in rng.permutation(len(CLASSES))[:2]]
    return {
        "k": str(number), "k0": str(number - 1), "k1": str(number + 1), "k2": str(2 * number),
        "c": pick(rng, LETTERS), "W": pick(rng, WORDS), "C": classes[0], "D": classes[1],
        "p": fields[0], "q": fields[1], "r": fields[2],
    }  # fmt: skip


def substitute(template: str, values: Mapping[str, str]) -> str:
    """Replace each $x by the value of the longest x in `values` that stands there."""
    keys = "|".join(sorted(map(re.escape, values), key=len, reverse=True))
    return re.sub(rf"\$({keys})", lambda match: values[match.group(1)], template)


def draw_arguments(family: Family, rng: np.random.Generator) -> dict[str, str]:
    """Different names for the slots of a family, none of which the body uses itself."""
    taken = set(re.findall(r"(?<!\$)\b[a-z_]\w*", family.code))
    chosen: dict[str, str] = {}
    for slot in family.args:
        names = SLOTS.get(slot, ("", (slot,)))[1]
        free = [name for name in names if name not in taken]
        chosen[slot] = pick(rng, free or [slot])
        taken.add(chosen[slot])
    return chosen


def draw_name(family: Family, rng: np.random.Generator) -> str:
    """A name for the function: mostly one that fits, sometimes a meaningless one that can only be copied."""
    draw = rng.random()
    if draw < 0.6:
        return str(pick(rng, family.names))
    if draw < 0.8:
        return str(pick(rng, COMMON_NAMES))
    return f"{pick(rng, VERBS)}_{pick(rng, NOUNS)}"


def fill(
    family: Family,
    rng: np.random.Generator,
    *,
    own_name: bool = False,
    own_arguments: bool = False,
    is_fitting: bool = False,
) -> Filled:
    """Fill in a family.

    Args:
        family: the template.
        rng: source of constants and names.
        own_name: draw a name instead of taking the family's first.
        own_arguments: draw names of arguments instead of taking the slots' own.
        is_fitting: draw only names that tell what the function does.
    """
    values = constants(rng)
    arguments = draw_arguments(family, rng) if own_arguments else {slot: slot for slot in family.args}
    values |= arguments
    requests = tuple(substitute(text, values) for text in family.do)
    if family.whole:
        source = substitute(family.whole, values).strip("\n")
        found = re.search(r"^class (\w+)", source, re.MULTILINE)
        return Filled(Subject(found.group(1) if found else "", source, requests[0]), requests, frozenset())
    name = family.names[0]
    if own_name:
        name = pick(rng, family.names) if is_fitting else draw_name(family, rng)
    name = substitute(name, values)
    body = substitute(family.code, {**values, "NAME": name}).strip("\n")
    source = f"def {name}({', '.join(arguments.values())}):\n" + "\n".join("    " + line for line in body.split("\n"))
    if family.head:
        source = f"{family.head}\n\n\n{source}"
    types = tuple((argument, type_of(slot, family)) for slot, argument in arguments.items())
    calls = run_calls(name, source, [substitute(call, values) for call in family.calls])
    subject = Subject(name, source, requests[0], calls, types, family.returns)
    naming = (i for i, text in enumerate(family.do) if any(f"${slot}" in text for slot in family.args))
    return Filled(subject, requests, frozenset(naming))


def run_calls(name: str, source: str, calls: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Execute example calls of our own templates and pair the arguments with the results' text."""
    space: dict[str, Any] = {}
    exec(source, space)
    return tuple((call, repr(eval(f"{name}({call})", space))) for call in calls)
