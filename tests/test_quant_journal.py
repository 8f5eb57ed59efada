"""The journal of a conversion: what was recorded is read again bit for bit, and nothing else ever is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cg_local.errors import QuantizeError
from cg_local.quant.journal import JOURNAL_FILE, Journal, Slab
from cg_local.quant.work_plan import PLAN_FILE

PLAN = {"quantizer": {"version": "1"}, "options": {"scheme": "q4"}, "sources": {}, "tensors": {"a": [1, 2]}}
FIGURES = [(0.1 + 0.2, 1e-310, 3.0), (0.0, 1 / 3, 5e-324), (1.7976931348623157e308, 2.0, 0.1)]
SLABS = [
    Slab("a", 0, 16, {"a.codes": (100, "0" * 64), "a.scales": (10, "1" * 64)}, FIGURES[0]),
    Slab("b", 0, 32, {"b": (7, "2" * 64)}, FIGURES[1]),
    Slab("a", 16, 40, {"a.codes": (150, "3" * 64), "a.scales": (15, "4" * 64)}, FIGURES[2]),
]


def record(workspace: Path) -> bytes:
    """Write a whole journal; returns its bytes."""
    with Journal(workspace, PLAN) as journal:
        journal.add_source("model.safetensors", "5" * 64)
        for slab in SLABS:
            journal.add(slab)
    return (workspace / JOURNAL_FILE).read_bytes()


def recorded(workspace: Path) -> list[Slab]:
    with Journal(workspace, PLAN) as journal:
        return [slab for slabs in journal.slabs.values() for slab in slabs]


def test_what_was_recorded_is_read_bit_for_bit(tmp_path: Path) -> None:
    record(tmp_path)
    with Journal(tmp_path, PLAN) as journal:
        assert journal.slabs == {"a": [SLABS[0], SLABS[2]], "b": [SLABS[1]]}
        assert journal.source_digests == {"model.safetensors": "5" * 64}
        assert journal.damage is None
        assert journal.num_bytes == 100 + 10 + 7 + 150 + 15


def test_cut_at_any_byte_leaves_the_whole_lines_before_it(tmp_path: Path) -> None:
    data, journal = record(tmp_path), tmp_path / JOURNAL_FILE
    for end in range(len(data)):
        journal.write_bytes(data[:end])
        num_lines = data[:end].count(b"\n")
        found = recorded(tmp_path)
        assert sorted(found, key=SLABS.index) == SLABS[: max(0, num_lines - 2)]
        # What came after the last whole line is gone; the plan's line is always there.
        assert journal.read_bytes() == b"".join(data.splitlines(keepends=True)[: max(1, num_lines)])


@pytest.mark.parametrize("flipped", [1, 0x20, 0x80])
def test_no_changed_byte_is_believed(tmp_path: Path, flipped: int) -> None:
    data, journal = record(tmp_path), tmp_path / JOURNAL_FILE
    for place in range(len(data)):
        journal.write_bytes(data[:place] + bytes([data[place] ^ flipped]) + data[place + 1 :])
        before = data[:place].count(b"\n")
        assert sorted(recorded(tmp_path), key=SLABS.index) == SLABS[: max(0, before - 2)]


def test_later_slab_replaces_those_whose_rows_end_behind_its_first(tmp_path: Path) -> None:
    record(tmp_path)
    again = Slab("a", 0, 16, {"a.codes": (100, "6" * 64)}, FIGURES[1])
    with Journal(tmp_path, PLAN) as journal:
        journal.add(again)
        assert journal.slabs["a"] == [again]
    with Journal(tmp_path, PLAN) as journal:
        assert journal.slabs == {"a": [again], "b": [SLABS[1]]}


def test_slab_behind_a_gap_counts_for_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, PLAN) as journal:
        journal.add(SLABS[2])
        assert journal.slabs == {"a": []}


@pytest.mark.parametrize(
    ("member", "obstacle"),
    [
        ("quantizer", "another version of cg-local began it"),
        ("options", "it was begun with scheme q4"),
        ("sources", "the published weights changed since"),
        ("tensors", "its tensors lie elsewhere"),
    ],
)
def test_obstacle_names_what_differs(tmp_path: Path, member: str, obstacle: str) -> None:
    assert Journal(tmp_path, PLAN).obstacle() is None
    record(tmp_path)
    assert Journal(tmp_path, PLAN).obstacle() is None
    assert Journal(tmp_path, {**PLAN, member: {"other": 1}}).obstacle() == obstacle


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"quantizer": 1'])
def test_damaged_plan_is_an_obstacle(tmp_path: Path, data: bytes) -> None:
    (tmp_path / PLAN_FILE).write_bytes(data)
    assert Journal(tmp_path, PLAN).obstacle() == "its plan is damaged"


def test_full_disk_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path, PLAN) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(QuantizeError, match=r"journal: cannot be written \(No space left on device\); make room"):
            journal.add(SLABS[0])
        assert journal.slabs == {}
    monkeypatch.undo()
    record(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / PLAN_FILE).unlink()
    with pytest.raises(QuantizeError, match=r"plan\.json: cannot be written"), Journal(tmp_path, PLAN):
        pass
