"""The store of K and V as files: bounds, order of removal, several processes, failing disks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from cg_local import kv_store
from cg_local.kv_store import KVStore, PageKind

KIND = PageKind(b"k" * 32, "toy", page_size=4, page_bytes=1000)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def store(folder: Path) -> KVStore:
    return KVStore(folder)


def content(place: int, seed: int = 0) -> bytes:
    return bytes((place * 7 + seed + number) % 251 for number in range(KIND.page_bytes))


def write(store: KVStore, tokens: list[int], *, kind: PageKind = KIND) -> int:
    def fill(place: int, out: memoryview) -> None:
        out[:] = content(place)

    return store.write(kind, tokens, fill)


def read(store: KVStore, tokens: list[int], *, kind: PageKind = KIND) -> list[bytes]:
    pages: list[bytes] = []
    for found in store.find(kind, tokens):
        pages += [bytes(page) for page in store.read(found, kind, found.first_page)]
    return pages


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.kv"), key=lambda path: path.stat().st_mtime)


def test_pages_come_back_as_they_were_written(store: KVStore) -> None:
    assert write(store, list(range(23))) > 5 * KIND.page_bytes
    assert read(store, list(range(23))) == [content(place) for place in range(5)]
    assert read(store, list(range(100))) == [content(place) for place in range(5)]
    assert read(store, list(range(11))) == [content(0), content(1)]
    assert read(store, [9, *range(22)]) == []


def test_reading_may_begin_in_the_middle(store: KVStore) -> None:
    write(store, list(range(20)))
    (found,) = store.find(KIND, list(range(20)))
    assert [bytes(page) for page in store.read(found, KIND, 3)] == [content(3), content(4)]


def test_longer_text_appends_and_a_branch_shares_its_beginning(store: KVStore, folder: Path) -> None:
    write(store, list(range(12)))
    write(store, list(range(20)))
    write(store, [*range(10), 99, 99, 99, 99, 99, 99])
    sizes = [path.stat().st_size // KIND.page_bytes for path in segments(folder)]
    assert sorted(sizes) == [2, 2, 3]
    assert len(read(store, list(range(20)))) == 5
    assert len(read(store, [*range(10), 99, 99, 99, 99, 99, 99])) == 4


def test_text_shorter_than_a_page_writes_nothing(store: KVStore, folder: Path) -> None:
    assert write(store, [1, 2, 3]) == 0
    assert not folder.exists()


def test_files_are_for_their_owner_alone(store: KVStore, folder: Path) -> None:
    before = os.umask(0)
    try:
        write(store, list(range(8)))
    finally:
        os.umask(before)
    (path,) = segments(folder)
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (folder, path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]


def test_size_0_neither_reads_nor_writes(store: KVStore, folder: Path) -> None:
    write(store, list(range(8)))
    off = KVStore(folder, max_bytes=0)
    assert read(off, list(range(8))) == []
    assert write(off, list(range(50, 70))) == 0


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    store = KVStore(folder, max_bytes=10_000)
    texts = [list(range(start, start + 12)) for start in (0, 100, 200)]
    for age, text in zip((300, 200, 100), texts, strict=True):
        write(store, text)
        newest = segments(folder)[-1]
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    assert len(read(store, texts[0])) == 3  # used now
    write(store, list(range(300, 312)))

    assert [len(read(store, text)) for text in texts] == [3, 0, 3]
    assert len(read(store, list(range(300, 312)))) == 3
    assert sum(path.stat().st_size for path in segments(folder)) <= 10_000


def test_end_of_a_text_goes_before_its_beginning(folder: Path) -> None:
    store = KVStore(folder, max_bytes=8_000)
    write(store, list(range(8)))
    write(store, list(range(16)))
    read(store, list(range(16)))
    write(store, list(range(100, 116)))
    assert len(read(store, list(range(16)))) == 2


def test_conversation_that_outgrows_the_bound_keeps_its_beginning(folder: Path) -> None:
    store = KVStore(folder, max_bytes=8_000)
    write(store, list(range(500, 504)))
    for pages in (2, 4, 6, 8, 10):
        write(store, list(range(4 * pages)))
        found = store.find(KIND, list(range(40)))
        assert sum(each.num_pages for each in found) == min(pages, 7)
        kept = {each.path for each in found}
        orphans = [path for path in segments(folder) if path not in kept]
        assert len(orphans) == (1 if pages < 8 else 0)  # the other text's, while there is room
    assert sum(path.stat().st_size for path in segments(folder)) <= 8_000


def test_turn_larger_than_the_bound_is_stored_as_far_as_it_goes(folder: Path) -> None:
    store = KVStore(folder, max_bytes=3_500)
    write(store, list(range(80)))
    assert sum(path.stat().st_size for path in segments(folder)) <= 3_500 + 1_000


def test_store_takes_at_most_a_tenth_of_the_free_disk(
    store: KVStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, list(range(20)))
    own = segments(folder)[0].stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**6, 0, 10 * 2_500 - own))
    assert write(store, list(range(100, 180))) > 0
    assert sum(path.stat().st_size for path in segments(folder)) <= 2_500 + 1_000
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**6, 0, 0))
    store.shrink()
    assert segments(folder) == []


@pytest.mark.parametrize("call", ["open", "replace", "chmod"])
def test_failing_disk_is_no_error_and_leaves_nothing_unfinished(
    store: KVStore, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert write(store, list(range(20))) == 0
    assert list(folder.rglob("*.tmp")) == []
    assert read(store, list(range(20))) == []
    assert write(store, list(range(20))) > 0


def test_disk_that_fills_up_while_a_page_is_written_is_no_error(
    store: KVStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(place: int, out: memoryview) -> None:
        if place == 3:
            raise OSError(28, "No space left on device")
        out[:] = content(place)

    assert store.write(KIND, list(range(40)), fill) == 0
    assert list(folder.rglob("*.tmp")) == []
    assert read(store, list(range(40))) == []


def test_interrupt_while_a_page_is_written_leaves_nothing_unfinished(store: KVStore, folder: Path) -> None:
    def fill(place: int, out: memoryview) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(KIND, list(range(40)), fill)
    assert list(folder.rglob("*.tmp")) == []


def test_segment_removed_by_another_process_is_a_miss(store: KVStore, folder: Path) -> None:
    write(store, list(range(12)))
    write(store, list(range(20)))
    found = store.find(KIND, list(range(20)))
    found[0].path.unlink()
    assert list(store.read(found[0], KIND, 0)) == []
    assert read(store, list(range(20))) == []
    write(store, list(range(20)))
    assert len(read(store, list(range(20)))) == 5


def test_files_of_killed_processes_are_removed_after_an_hour(store: KVStore, folder: Path) -> None:
    write(store, list(range(8)))
    place = segments(folder)[0].parent
    old, new = place / "a.kv.1.tmp", place / "b.kv.2.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (old.stat().st_mtime - kv_store.ABANDONED_SECONDS - 10,) * 2)
    store.shrink()
    assert (old.exists(), new.exists()) == (False, True)


def test_nothing_is_printed_of_a_fault(store: KVStore, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(store, list(range(8)))
    segments(folder)[0].write_bytes(b"damaged")
    assert read(store, list(range(8))) == []
    assert capfd.readouterr() == ("", "")


def test_entries_and_clear(store: KVStore, folder: Path) -> None:
    write(store, list(range(8)))
    write(store, list(range(16)), kind=PageKind(b"m" * 32, "other", 4, 1000))
    entries = {entry.label: (entry.num_segments, entry.num_bytes) for entry in store.entries()}
    assert {label: count for label, (count, _) in entries.items()} == {"toy": 1, "other": 1}
    total = sum(path.stat().st_size for path in segments(folder))
    assert sum(size for _, size in entries.values()) == total
    assert store.clear() == total
    assert store.entries() == []
    assert write(store, list(range(8))) > 0


def test_clear_removes_what_the_store_wrote_and_nothing_else(store: KVStore, folder: Path) -> None:
    write(store, list(range(8)))
    place = segments(folder)[0].parent
    mine = [folder / "mine" / "notes.txt", folder / "mine" / "a.kv", place / "notes.txt", folder / "notes.kv"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (place / "x.kv.1.tmp").write_text("left over")
    store.clear()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(mine)
    assert [entry.num_segments for entry in store.entries()] == [0]
    mine[2].unlink()
    store.clear()
    assert not place.exists()


WRITER = """
import sys
from pathlib import Path
from cg_local.kv_store import KVStore, PageKind
kind = PageKind(b"k" * 32, "toy", page_size=4, page_bytes=1000)
store = KVStore(Path(sys.argv[1]), max_bytes=60_000)

def content(place):
    return bytes((place * 7 + number) % 251 for number in range(1000))

def fill(place, out):
    out[:] = content(place)

wrong = 0
for turn in range(60):
    tokens = [turn % 7, *range(4 * (turn % 12 + 1) + 3)]
    for found in store.find(kind, tokens):
        for place, page in enumerate(store.read(found, kind, found.first_page), found.first_page):
            wrong += bytes(page) != content(place)
    store.write(kind, tokens, fill)
print(wrong)
"""


def test_processes_that_write_read_and_remove_at_once_read_only_sound_pages(folder: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate(timeout=120) for process in processes]
    assert results == [("0\n", "")] * 3
