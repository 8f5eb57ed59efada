"""Finding an edit again in a file that changed since: what identifies the place, and what does not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cg_local.infill.anchors import NEAREST_BYTES, distances, inverse_edits, surroundings_of
from cg_local.infill.edit import Edit, apply_edits, clashes


def taken_back(old: bytes, edits: list[Edit], changed: bytes) -> bytes | None:
    """What undo makes of a file that changed; None: refused."""
    around = surroundings_of(old, edits)
    inverse = inverse_edits(changed, edits, around, distances(old, edits, around))
    return None if inverse is None else apply_edits(changed, inverse)


ADD = b"def add(a, b):\n    return "
BOM = b"\xef\xbb\xbfdef swap(a, b):\n    return b"
STUB = b"def stub(a):\n    # %b\n    return " % (b"x" * 80)


@pytest.mark.parametrize(
    ("old", "place", "answer", "changed"),
    [
        (ADD, len(ADD), b"a + b", ADD + b"b - a"),
        (ADD, len(ADD), b"a + b", ADD + b"a + bc"),
        (b"import os\n", 0, b"# Time\n", b"# Cost\nimport os\n"),
        (b"import os\n", 0, b"# Time\n", b"x# Time\nimport os\n"),
        (BOM, len(BOM), b".replace(a, b)", BOM + b".replace(a, b)[0]"),
        (BOM, len(BOM), b".replace(a, b)", BOM + b".replace(a, b)andwidth * k"),
        # A line break as the only neighbour begins what was typed in place of the answer, too.
        (ADD + b"\n", len(ADD), b"a + b", ADD + b"\n    (a +\n     b)\n"),
        (ADD + b"\n", len(ADD), b"a + b", ADD + b"a + b\n        + c\n"),
        # The same gap twice; the other one stays whatever becomes of this one.
        (STUB + b"a\n" + STUB, 2 * len(STUB) + 2, b"a\n", STUB + b"a\n" + STUB + b"b\n"),
        (STUB + b"\n\n" + STUB + b"\n\n", len(STUB), b"a", STUB + b"b\n\n" + STUB + b"\n\n"),
    ],
)
def test_replaced_or_extended_answer_is_neither_found_nor_taken_for_removed(
    old: bytes, place: int, answer: bytes, changed: bytes
) -> None:
    assert taken_back(old, [Edit(place, b"", answer)], changed) is None


def test_edits_close_to_each_other_are_found_by_what_stands_around_all_of_them() -> None:
    old = b"".join(b"%03d\n" % number for number in range(100))
    edits = [Edit(200, b"050\n", b"fifty\n"), Edit(208, b"", b"new\n"), Edit(208 + 4, b"053\n", b"")]
    new = apply_edits(old, edits)
    assert taken_back(old, edits, b"000\n" + new) == b"000\n" + old
    assert taken_back(old, edits, new.replace(b"051\n", b"xyz\n")) is None


LINES = [b"line %03d is of its own\n" % number for number in range(30)]
OLD = b"".join(LINES)


@st.composite
def writes(draw: st.DrawFn, size: int, texts: st.SearchStrategy[bytes], old: bytes = OLD) -> list[Edit]:
    """One to three edits apart from each other."""
    edits: list[Edit] = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, size))
        end = draw(st.integers(start, min(size, start + 40)))
        edit = Edit(start, old[start:end], draw(texts))
        if edit.before != edit.after and not clashes(edits, edit):
            edits.append(edit)
    return sorted(edits, key=lambda edit: edit.start) or [Edit(0, b"", b"!")]


def neighbourhoods(old: bytes, edits: list[Edit]) -> list[tuple[int, int]]:
    """Offsets in the new file that must stay; -1 and one above its length stand for its start and end."""
    shift, spans = 0, []
    size = len(apply_edits(old, edits))
    for edit in edits:
        start = edit.start + shift
        shift += len(edit.after) - len(edit.before)
        end = start + len(edit.after)
        spans.append((max(start - NEAREST_BYTES, -1), min(end + NEAREST_BYTES, size + 1)))
    return spans


@given(writes(len(OLD), st.sampled_from([b"", b"new", b"two\nlines\n", b"answer(%s)" * 3])), st.data())
def test_among_lines_of_their_own_exactly_what_stands_unchanged_is_taken_back(
    edits: list[Edit], data: st.DataObject
) -> None:
    new = apply_edits(OLD, edits)
    start = data.draw(st.integers(0, len(new)))
    end = data.draw(st.integers(start, min(len(new), start + 30)))
    splice = Edit(start, new[start:end], data.draw(st.sampled_from([b"", b"<<<somebody's>>>", b"new", b"\n"])))
    changed = apply_edits(new, [splice])
    assume(changed != new)  # told by its digest
    result = taken_back(OLD, edits, changed)
    spans = neighbourhoods(OLD, edits)
    is_apart = all(splice.end <= first or last <= splice.start for first, last in spans)
    if is_apart:
        # The splice, moved to where that text was before the write.
        before = [edit for edit, span in zip(edits, spans, strict=True) if span[1] <= splice.start]
        moved = start + sum(len(edit.before) - len(edit.after) for edit in before)
        assert result == OLD[:moved] + splice.after + OLD[moved + len(splice.before) :]
    else:
        assert result is None or result == changed or is_plainly_right(OLD, edits, changed, result)


def is_plainly_right(old: bytes, edits: list[Edit], changed: bytes, result: bytes) -> bool:
    """Whether one placing of the edits, each between unchanged neighbours, leads from one file to the other."""
    around = surroundings_of(old, edits)
    size = len(old)
    found = []
    for edit, sides in zip(edits, around, strict=True):
        left, right = sides.left[-NEAREST_BYTES:], sides.right[:NEAREST_BYTES]
        places = [
            place
            for place in range(len(changed) + 1)
            if changed[:place].endswith(left)
            and changed[place:].startswith(edit.after + right)
            and (len(sides.left) != edit.start or edit.start >= NEAREST_BYTES or place == edit.start)
            and (edit.end + len(right) < size or len(right) == NEAREST_BYTES or changed[place:] == edit.after + right)
        ]
        found.append([Edit(place, edit.after, edit.before) for place in places])
    combinations: list[list[Edit]] = [[]]
    for choices in found:
        combinations = [[*some, each] for some in combinations for each in choices]
    return any(
        all(one.end <= other.start for one, other in pairwise(some)) and apply_edits(changed, some) == result
        for some in combinations
    )


@given(st.data())
def test_among_texts_that_repeat_nothing_is_changed_but_what_was_written(data: st.DataObject) -> None:
    texts = st.binary(max_size=6).map(lambda text: bytes(b"ab\n"[byte % 3] for byte in text))
    old = b"".join(data.draw(st.lists(st.sampled_from([b"a", b"ab\n", b"b\n" * 40, b"a" * 70]), max_size=6)))
    edits = data.draw(writes(len(old), texts, old))
    new = apply_edits(old, edits)
    start = data.draw(st.integers(0, len(new)))
    end = data.draw(st.integers(start, len(new)))
    changed = new[:start] + data.draw(texts) + new[end:]
    assume(changed != new)
    result = taken_back(old, edits, changed)
    assert result in (None, changed) or is_plainly_right(old, edits, changed, result)
