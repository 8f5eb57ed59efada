"""What of a file is kept when the whole is too long.

Owns the order in which definitions get their place. Invariant: an excerpt never has more tokens than allowed, holds
its units in the order of the file, and depends on the file, the wanted names and the budget alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from cg_local.repository.definitions import Unit, units_of

Count = Callable[[str], int]
"""Text to its number of tokens."""

MAX_VARIABLE_LINES = 3
"""A longer value is a table; its name alone would not help, and the whole would take the place of the definitions."""


def excerpt(path: str, text: str, wanted: Collection[str], max_tokens: int, count: Count) -> str:
    """The part of a file that fits.

    The whole where it fits. Otherwise first the wanted definitions without the bodies of their functions, then these
    whole, then the other public definitions without bodies, then short variables. A file without known definitions
    gives its leading lines.

    Args:
        path: its name decides the language.
        text: its content, with newlines only.
        wanted: names of definitions; none, or none that the file has: all public ones.
        max_tokens: most tokens of the excerpt.
        count: counts the tokens of whole lines.

    Returns:
        Whole lines; "" where not one fits.
    """
    # Code has 3 to 4 characters a token; of a file with 16 for each token allowed the whole is not counted.
    if len(text) <= 16 * max_tokens and count(text) <= max_tokens:
        return text
    units = units_of(path, text)
    named = {place for place, unit in enumerate(units) if set(unit.names) & set(wanted)}
    public = [place for place, unit in enumerate(units) if unit.is_public]
    first = sorted(named) or [place for place in public if units[place].is_definition]
    rest = [place for place in public if place not in first]
    steps = [(place, units[place].outline) for place in first] + [(place, units[place].text) for place in first]
    steps += [(place, units[place].outline) for place in rest if units[place].is_definition]
    steps += [(place, units[place].text) for place in rest if is_short_variable(units[place])]
    chosen: dict[int, str] = {}
    sizes: dict[int, int] = {}
    room = max_tokens
    for place, shown in steps:
        size, before = count(shown) + 1, sizes.get(place, 0)  # a blank line may stand before it
        if size - before <= room:
            chosen[place], sizes[place] = shown, size
            room -= size - before
    if not chosen:
        return leading_lines(units[first[0]].outline if first else text, max_tokens, count)
    return joined(units, chosen)


def is_short_variable(unit: Unit) -> bool:
    """Whether a unit is a variable whose value is worth its place."""
    return not unit.is_definition and unit.text.count("\n") <= MAX_VARIABLE_LINES


def joined(units: list[Unit], chosen: dict[int, str]) -> str:
    """The chosen units in the order of the file, definitions apart from each other by a blank line."""
    pieces: list[str] = []
    for place in sorted(chosen):
        is_apart = bool(pieces) and (units[place].is_definition or units[max(place - 1, 0)].is_definition)
        pieces += ["\n", chosen[place]] if is_apart else [chosen[place]]
    return "".join(pieces)


def leading_lines(text: str, max_tokens: int, count: Count) -> str:
    """As many of the first lines as fit."""
    kept: list[str] = []
    for line in text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"):
        max_tokens -= count(line + "\n")
        if max_tokens < 0:
            break
        kept.append(line + "\n")
    return "".join(kept)
