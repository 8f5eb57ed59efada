"""An answer as a change of a file's bytes: where it goes, the file with it, and the difference to show.

This file owns the way from a gap in the decoded text to the bytes on disk. It writes nothing. Invariant: every byte
outside of the edits is that of the file: byte order mark, line endings and what follows the last line included.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from cg_local.infill.cursor import Gap, SourceText

_CONTEXT_LINES = 3  # as `diff -u`
# What `patch` and `git apply` expect behind a last line without line break.
_NO_NEWLINE = "\\ No newline at end of file\n"
# Git's own escapes in quoted file names.
_ESCAPES = dict(zip('\a\b\t\n\v\f\r"\\', [f"\\{letter}" for letter in 'abtnvfr"\\'], strict=True))

_Opcode = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Edit:
    """Bytes of a file that become others.

    Attributes:
        start: offset of the first byte.
        before: what stands there; empty: something is inserted.
        after: what shall stand there.
    """

    start: int
    before: bytes
    after: bytes

    @property
    def end(self) -> int:
        """Offset behind the bytes that are replaced."""
        return self.start + len(self.before)


def edit_of(source: SourceText, gap: Gap, text: str) -> Edit:
    """Return what an answer changes in the file it was made for.

    Args:
        source: the file as it was read, with its bytes.
        gap: the place, of `locate`.
        text: the answer, lines ending with "\\n"; it gets the line ending of the file.
    """
    replaced_end = len(source.text) - len(gap.suffix)
    start = _offset(source.data, gap.prefix)
    end = _offset(source.data, source.text[:replaced_end])
    after = text.replace("\n", source.newline).encode("utf-8", errors="replace")
    return Edit(start, source.data[start:end], after)


def apply_edits(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Return a file's bytes with edits.

    Args:
        data: the file.
        edits: in any order, apart from each other; of two insertions at one place the first comes first.
    """
    parts, position = [], 0
    for edit in _in_order(edits):
        assert data[edit.start : edit.end] == edit.before
        parts += [data[position : edit.start], edit.after]
        position = edit.end
    return b"".join([*parts, data[position:]])


def clashes(edits: Sequence[Edit], edit: Edit) -> bool:
    """Whether an edit touches what one of others touches, or begins where it begins."""
    return any(edit.start == other.start or (edit.start < other.end and other.start < edit.end) for other in edits)


def unified_diff(name: str, data: bytes, edits: Sequence[Edit]) -> str:
    """Return a difference that `git apply` and `patch -p1` take; empty when nothing changes.

    Args:
        name: path of the file, relative to where the difference is to be applied.
        data: the file before the edits, UTF-8.
        edits: in any order.
    """
    new = apply_edits(data, edits)
    old_lines, new_lines = _lines(data), _lines(new)
    opcodes = _opcodes(data, new, old_lines, new_lines, _in_order(edits))
    hunks = list(_KnownOpcodes(opcodes).get_grouped_opcodes(_CONTEXT_LINES))
    if data == new:
        return ""
    parts = [f"--- {_quoted('a', name)}\n", f"+++ {_quoted('b', name)}\n"]
    for hunk in hunks:
        parts.append(f"@@ -{_range(hunk[0][1], hunk[-1][2])} +{_range(hunk[0][3], hunk[-1][4])} @@\n")
        for tag, i1, i2, j1, j2 in hunk:
            if tag == "equal":
                parts += [_marked(" ", line) for line in old_lines[i1:i2]]
                continue
            parts += [_marked("-", line) for line in old_lines[i1:i2]]
            parts += [_marked("+", line) for line in new_lines[j1:j2]]
    return "".join(parts)


class _KnownOpcodes(SequenceMatcher[str]):
    """Groups changes that are known into hunks, as difflib groups those that it finds."""

    def __init__(self, opcodes: list[_Opcode]) -> None:
        super().__init__()
        self._known = opcodes

    def get_opcodes(self) -> list[_Opcode]:  # type: ignore[override]
        return self._known


def _opcodes(data: bytes, new: bytes, old_lines: list[str], new_lines: list[str], edits: list[Edit]) -> list[_Opcode]:
    """Compare the lines around the edits alone: the rest is equal, however long the file is."""
    opcodes: list[_Opcode] = []
    i = j = 0
    for old_start, old_end, new_start, new_end in _line_spans(data, new, edits):
        if i < old_start:
            opcodes.append(("equal", i, old_start, j, new_start))
        matcher = SequenceMatcher(None, old_lines[old_start:old_end], new_lines[new_start:new_end], autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            opcodes.append((tag, old_start + a, old_start + b, new_start + c, new_start + d))
        i, j = old_end, new_end
    if i < len(old_lines):
        opcodes.append(("equal", i, len(old_lines), j, len(new_lines)))
    return _merged(opcodes)


def _merged(opcodes: list[_Opcode]) -> list[_Opcode]:
    """Join equal runs that follow each other: the number of context lines is counted within one run."""
    merged: list[_Opcode] = []
    for opcode in opcodes:
        if merged and opcode[0] == merged[-1][0] == "equal":
            _, i1, _, j1, _ = merged.pop()
            opcode = ("equal", i1, opcode[2], j1, opcode[4])
        merged.append(opcode)
    return merged


def _line_spans(data: bytes, new: bytes, edits: list[Edit]) -> Iterator[tuple[int, int, int, int]]:
    """Give the lines that each edit touches, before and after it; edits of one line come together."""
    shift, spans = 0, list[tuple[int, int, int, int]]()
    for edit in edits:
        new_start, new_end = edit.start + shift, edit.start + shift + len(edit.after)
        shift = new_end - edit.end
        span = (
            data.count(b"\n", 0, edit.start),
            _lines_until(data, edit.end),
            new.count(b"\n", 0, new_start),
            _lines_until(new, new_end),
        )
        if spans and span[0] < spans[-1][1]:
            span = (spans[-1][0], span[1], spans[-1][2], span[3])
            spans.pop()
        spans.append(span)
    yield from spans


def _lines_until(data: bytes, position: int) -> int:
    """Count the lines up to a place, the one it lies in included; none begins behind the last line break."""
    ends_at = data.find(b"\n", position)
    if ends_at >= 0:
        return data.count(b"\n", 0, ends_at + 1)
    return data.count(b"\n") + (not data.endswith(b"\n") and bool(data))


def _in_order(edits: Sequence[Edit]) -> list[Edit]:
    """Sort edits by place; an insertion comes before what is replaced behind it."""
    return sorted(edits, key=lambda edit: (edit.start, edit.end))


def _offset(data: bytes, text_before: str) -> int:
    """Return the byte offset in a file of the place behind some of its decoded text.

    Decoding changes only the ends of lines and the byte order mark, so lines and their beginnings are the same.
    """
    num_lines, start = text_before.count("\n"), 0
    for _ in range(num_lines):
        start = data.index(b"\n", start) + 1
    if num_lines == 0 and data.startswith(codecs.BOM_UTF8):
        start = len(codecs.BOM_UTF8)
    return start + len(text_before[text_before.rfind("\n") + 1 :].encode())


def _lines(data: bytes) -> list[str]:
    # splitlines would also end lines at form feeds and the like, which `patch` does not.
    lines = data.decode("utf-8", errors="replace").split("\n")
    return [f"{line}\n" for line in lines[:-1]] + lines[-1:] * (lines[-1] != "")


def _marked(mark: str, line: str) -> str:
    return mark + line if line.endswith("\n") else f"{mark}{line}\n{_NO_NEWLINE}"


def _range(start: int, end: int) -> str:
    """Lines as a hunk's head counts them: from 1; an empty range names the line before it."""
    count = end - start
    if count == 1:
        return str(start + 1)
    return f"{start + 1 if count else start},{count}"


def _quoted(side: str, name: str) -> str:
    path = f"{side}/{name.lstrip('/')}"
    if any(character in _ESCAPES or character < " " for character in path):
        return '"' + "".join(_ESCAPES.get(character, character) for character in path) + '"'
    # Without the tab `patch` would end the name at its first space.
    return path + "\t" * (" " in path)
