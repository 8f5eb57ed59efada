"""Where an edit stands in a file that changed since it was written.

This file owns what identifies the place: the text itself and the bytes on both sides, with the start and the end of the
file counting as neighbours. Invariant: an edit is found only where its text stands unchanged between unchanged
neighbours, and where nothing else in the file could be mistaken for it, neither when it was written nor now.

Edits that stand close to each other are each other's neighbours, so they are found together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cg_local.infill.edit import Edit, apply_edits

# Bytes kept from either side of an edit, by which it is found again in a file that changed elsewhere; and how many of
# them must be the same where the change came nearer.
CONTEXT_BYTES, NEAREST_BYTES = 200, 60


@dataclass(frozen=True)
class Surroundings:
    """The bytes on both sides of an edit that no other edit of the same write touched."""

    left: bytes
    right: bytes


@dataclass(frozen=True)
class Distances:
    """How many bytes of the surroundings must be the same, so that nothing else is mistaken for what is looked for.

    Attributes:
        written: for the text after the edits; None: it stood in several places already when it was written.
        removed: for the text before the edits, in its place; None: it stood elsewhere, too.
    """

    written: int | None = NEAREST_BYTES
    removed: int | None = NEAREST_BYTES


def surroundings_of(data: bytes, edits: Sequence[Edit]) -> list[Surroundings]:
    """Return what stands around each edit.

    Args:
        data: the file before the edits.
        edits: ascending.
    """
    ends = [0] + [edit.end for edit in edits[:-1]]
    starts = [edit.start for edit in edits[1:]] + [len(data)]
    return [
        Surroundings(
            data[max(first, edit.start - CONTEXT_BYTES) : edit.start],
            data[edit.end : min(last, edit.end + CONTEXT_BYTES)],
        )
        for edit, first, last in zip(edits, ends, starts, strict=True)
    ]


def distances(data: bytes, edits: Sequence[Edit], around: Sequence[Surroundings]) -> Distances:
    """Choose how much of the surroundings it takes to tell the edits from the rest of their file.

    Args:
        data: the file before the edits.
        edits: ascending.
        around: of `surroundings_of`.
    """
    new, runs = apply_edits(data, edits), list(_runs(edits, around))
    sizes = (NEAREST_BYTES, CONTEXT_BYTES)
    written = (size for size in sizes if all(len(run.places(new, size, is_written=True)) == 1 for run in runs))
    removed = (size for size in sizes if not any(run.places(new, size, is_written=False) for run in runs))
    return Distances(next(written, None), next(removed, None))


def inverse_edits(
    data: bytes, edits: Sequence[Edit], around: Sequence[Surroundings], least: Distances
) -> tuple[Edit, ...] | None:
    """Return the edits that bring the text before some edits back, wherever that stands now.

    Args:
        data: the file as it is, which changed since.
        edits: what was written into it, ascending.
        around: of `surroundings_of`.
        least: of `distances`.

    Returns:
        Ascending; empty when the text before stands there already; None when neither can be told.
    """
    runs = list(_runs(edits, around))
    found = [run.find(data, least.written, is_written=True) for run in runs]
    inverse = sorted(
        (
            Edit(place + start, edit.after, edit.before)
            for run, place in zip(runs, found, strict=True)
            if place is not None
            for edit, start in zip(run.edits, run.starts(is_written=True), strict=True)
        ),
        key=lambda edit: (edit.start, edit.end),
    )
    if len(inverse) == len(edits) and all(one.end <= other.start for one, other in pairwise(inverse)):
        return tuple(inverse)
    if all(run.find(data, least.removed, is_written=False) is not None for run in runs):
        return ()
    return None


@dataclass(frozen=True)
class _Run:
    """Edits that stand close to each other.

    Attributes:
        edits: ascending.
        between: the bytes between one and the next.
        left, right: what stands around all of them; less than CONTEXT_BYTES before the next run and the file's ends.
        is_first: no run before it, so that a short left side begins the file.
        is_last: the same at the end.
    """

    edits: tuple[Edit, ...]
    between: tuple[bytes, ...]
    left: bytes
    right: bytes
    is_first: bool
    is_last: bool

    def starts(self, *, is_written: bool) -> list[int]:
        """Where each edit begins, seen from the first one."""
        starts, position = [], 0
        for edit, between in zip(self.edits, (*self.between, b""), strict=True):
            starts.append(position)
            position += len(edit.after if is_written else edit.before) + len(between)
        return starts

    def find(self, data: bytes, least: int | None, *, is_written: bool) -> int | None:
        """Return where the run stands; None: nowhere, or it cannot be told where."""
        for size in (CONTEXT_BYTES, NEAREST_BYTES):
            places = self.places(data, size, is_written=is_written) if least is not None and size >= least else []
            if places:
                return places[0] if len(places) == 1 else None
        return None

    def places(self, data: bytes, size: int, *, is_written: bool) -> list[int]:
        """Return where the run stands between `size` bytes on either side: the first two places at most."""
        left, right = self.left[max(0, len(self.left) - size) :], self.right[:size]
        texts = [edit.after if is_written else edit.before for edit in self.edits]
        middle = b"".join(text + between for text, between in zip(texts, (*self.between, b""), strict=True))
        pattern = left + middle + right
        starts_file, ends_file = self.is_first and len(left) < size, self.is_last and len(right) < size
        first = data.rfind(pattern, max(0, len(data) - len(pattern))) if ends_file else data.find(pattern)
        if first < 0 or (starts_file and first > 0):
            return []
        again = -1 if starts_file or ends_file else data.find(pattern, first + 1)
        return [place + len(left) for place in (first, again) if place >= 0]


def _runs(edits: Sequence[Edit], around: Sequence[Surroundings]) -> Iterator[_Run]:
    first = 0
    for last, edit in enumerate(edits):
        is_last = last == len(edits) - 1
        if is_last or edits[last + 1].start - edit.end >= NEAREST_BYTES:
            yield _Run(
                edits=tuple(edits[first : last + 1]),
                between=tuple(sides.right for sides in around[first:last]),
                left=around[first].left,
                right=around[last].right,
                is_first=first == 0,
                is_last=is_last,
            )
            first = last + 1
