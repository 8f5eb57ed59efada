"""The corpus of cursors in infill_cases/: what stands around a gap, what a model wrote there, and what is kept of it.

A case is a line "=== FILE MODE [STOP; CUTS]: reason" and the text of the file below it. The gap is ⟦kept¦cut⟧: a model
wrote both, and the first part is kept. Where what is kept is no beginning of what was written, it is ⟦written⇒kept⟧.
␃ ends a text without a line break, ␍ is a carriage return. A reason may name where users of another tool met the case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "infill_cases"
_HEAD = re.compile(r"^=== (\S+) (auto|line|block)(?: \[([^];]+); ?([^]]*)\])?: (.+)\n", re.MULTILINE)
_GAP = re.compile(r"⟦([^⟧]*)⟧", re.DOTALL)


@dataclass(frozen=True)
class InfillCase:
    """A case.

    Attributes:
        name: its file and line; path: what the model's file is called; mode: as asked for.
        reason: what it shows.
        prefix, suffix: the text around the gap.
        written: the model's text; kept: what is kept of it.
        stop_reason: why generation stopped, "-" if it went to the end; trimmed: the names of the cuts.
    """

    name: str
    path: str
    mode: str
    reason: str
    prefix: str
    suffix: str
    written: str
    kept: str
    stop_reason: str
    trimmed: tuple[str, ...]


def read_cases() -> list[InfillCase]:
    """Read all cases, in the order of the files' names."""
    return [case for path in sorted(FOLDER.glob("*.txt")) for case in _cases_of(path)]


def _cases_of(path: Path) -> list[InfillCase]:
    text = path.read_text(encoding="utf-8")
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [_case(path, text, head, end) for head, end in zip(heads, ends, strict=True)]


def _case(path: Path, text: str, head: re.Match[str], end: int) -> InfillCase:
    body = text[head.end() : end].partition("␃")[0].replace("␍", "\r")
    (gap,) = _GAP.finditer(body)
    written, arrow, kept = gap[1].partition("⇒")
    if not arrow:
        kept, _, cut = gap[1].partition("¦")
        written = kept + cut
    return InfillCase(
        name=f"{path.name}:{text.count(chr(10), 0, head.start()) + 1}",
        path=head[1],
        mode=head[2],
        reason=head[5],
        prefix=body[: gap.start()],
        suffix=body[gap.end() :],
        written=written,
        kept=kept,
        stop_reason=head[3] or "-",
        trimmed=tuple((head[4] or "").split()),
    )
