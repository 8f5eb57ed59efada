"""The parts of README.md that programs write, each between two lines of its own.

This file owns the lines and the replacement. Invariant: nothing outside of the two lines changes.
"""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def markers(part: str, writer: str) -> tuple[str, str]:
    """Return the lines around a part."""
    return f"<!-- {part}: benchmarks/{writer} writes this -->", f"<!-- end of {part} -->"


def replaced(readme: str, around: tuple[str, str], text: str) -> str:
    """Return a README with the text between two lines replaced.

    Raises:
        ValueError: a line is missing.
    """
    before, begin, rest = readme.partition(around[0])
    _, end, after = rest.partition(around[1])
    if not begin or not end:
        raise ValueError(f"README.md: the lines {around[0]} and {around[1]} are needed around the table")
    return f"{before}{begin}\n{text}\n{end}{after}"


def write_part(around: tuple[str, str], text: str) -> None:
    """Put a text between two lines of README.md."""
    README.write_text(replaced(README.read_text(encoding="utf-8"), around, text), encoding="utf-8")
