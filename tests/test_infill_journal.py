"""The journal of writes: taking back, refusing, privacy, bounds, and two processes at once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import journal_program
import pytest

from cg_local.errors import SourceFileError
from cg_local.infill import journal as module
from cg_local.infill.edit import Edit
from cg_local.infill.journal import FileEdits, Journal

TEXT = b"".join(b"line %d\n" % number for number in range(100))
PLACE = TEXT.index(b"line 50\n")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "writes")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.py"
    path.write_bytes(TEXT)
    return path


def insert(journal: Journal, file: Path, text: bytes, place: int = PLACE) -> None:
    journal.write(file, file.read_bytes(), [Edit(place, b"", text)])


def errors(journal: Journal, count: int = 1, *files: Path) -> list[str | None]:
    return [undo.error and str(undo.error) for undo in journal.undo(count, files)]


def test_last_writes_are_taken_back_newest_first(journal: Journal, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.py"
    other.write_bytes(b"b\n")
    versions = [file.read_bytes()]
    for text in (b"one\n", b"two\n", b"three\n"):
        insert(journal, file, text)
        versions.append(file.read_bytes())
    insert(journal, other, b"x", 0)
    assert [undo.write.file for undo in journal.undo(2)] == [other, file]
    assert (other.read_bytes(), file.read_bytes()) == (b"b\n", versions[2])
    assert errors(journal, 9) == [None, None]
    assert file.read_bytes() == versions[0]
    with pytest.raises(SourceFileError, match="nothing to take back: no write is in the journal"):
        journal.undo(1)


def test_writes_of_named_files_alone_are_taken_back(journal: Journal, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.py"
    other.write_bytes(b"b\n")
    link = tmp_path / "link"
    link.symlink_to(file)
    insert(journal, link, b"one\n")
    insert(journal, other, b"x", 0)
    assert errors(journal, 1, link) == [None]
    assert (file.read_bytes(), other.read_bytes(), link.is_symlink()) == (TEXT, b"xb\n", True)
    with pytest.raises(SourceFileError, match=r"no write in .*a\.py is in the journal"):
        journal.undo(1, [file])


def test_several_edits_are_one_write(journal: Journal, file: Path) -> None:
    edits = [Edit(PLACE, b"line 50\n", b""), Edit(0, b"", "ä\r\n".encode()), Edit(PLACE + 8, b"line", b"LINE")]
    journal.write(file, TEXT, edits)
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("x.py", "y.py", "z.py")]
    for path in paths:
        path.write_bytes(TEXT)
    return paths


def insert_together(journal: Journal, files: list[Path], text: bytes) -> list[SourceFileError | None]:
    return journal.write_together([FileEdits(each, TEXT, (Edit(PLACE, b"", text),)) for each in files])


def test_files_written_together_are_taken_back_together(journal: Journal, file: Path, files: list[Path]) -> None:
    insert(journal, file, b"first\n")
    assert insert_together(journal, files, b"new\n") == [None] * 3
    assert [undo.write.file for undo in journal.undo(1)] == files[::-1]
    assert [each.read_bytes() for each in files] == [TEXT] * 3
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT


def test_of_files_written_together_each_that_can_is_taken_back(journal: Journal, files: list[Path]) -> None:
    insert_together(journal, files, b"new\n")
    files[1].write_bytes(b"something else\n")
    first, second, third = errors(journal)
    assert (first, third) == (None, None)
    assert "does not stand there any more" in (second or "")
    assert [each.read_bytes() for each in files] == [TEXT, b"something else\n", TEXT]
    files[1].write_bytes(TEXT + b"new line\n")  # what was refused stays in the journal
    assert errors(journal) == [None]


def test_file_named_alone_is_taken_back_alone(journal: Journal, files: list[Path]) -> None:
    insert_together(journal, files, b"new\n")
    assert [undo.write.file for undo in journal.undo(1, files[:1])] == files[:1]
    assert [undo.write.file for undo in journal.undo(1)] == files[:0:-1]


def test_file_that_changed_meanwhile_is_refused_and_the_others_are_written(journal: Journal, files: list[Path]) -> None:
    files[1].write_bytes(b"something else\n")
    first, second, third = insert_together(journal, files, b"new\n")
    assert (first, third) == (None, None)
    assert "changed since it was read" in str(second)
    assert files[1].read_bytes() == b"something else\n"
    assert [undo.write.file for undo in journal.undo(1)] == [files[2], files[0]]


def test_write_of_many_files_is_kept_whole_or_dropped_whole(
    journal: Journal, file: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    insert_together(journal, files, b"new\n")
    assert len(journal.undo(9, is_dry=True)) == 3
    insert(journal, file, b"newer\n")
    assert [undo.write.file for undo in journal.undo(9, is_dry=True)] == [file]


def test_entries_of_versions_that_knew_one_file_a_write_are_writes_of_their_own(
    journal: Journal, files: list[Path]
) -> None:
    insert_together(journal, files, b"new\n")
    for entry in journal.folder.glob("*.json"):
        document = json.loads(entry.read_bytes())
        del document["group"]
        entry.write_text(json.dumps(document))
    assert [undo.write.file for undo in journal.undo(1)] == files[2:]


@pytest.mark.parametrize("edits", [[Edit(PLACE, b"", b"new\n")], [Edit(PLACE, b"line 50\n", b""), Edit(0, b"l", b"L")]])
def test_edits_of_others_elsewhere_stay(journal: Journal, file: Path, edits: list[Edit]) -> None:
    journal.write(file, TEXT, edits)
    changed = file.read_bytes().replace(b"line 80\n", b"").replace(b"line 30\n", b"thirty and more\n")
    file.write_bytes(changed)
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT.replace(b"line 80\n", b"").replace(b"line 30\n", b"thirty and more\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"new\n", b"newer\n"),
        lambda text: text.replace(b"line 49\n", b"line forty-nine\n"),
        lambda text: text + text,  # in two places now
        lambda text: b"",
        lambda text: b"\xff\0" + text[::-1],
    ],
)
def test_text_that_is_no_longer_there_is_left_alone(journal: Journal, file: Path, change: object) -> None:
    insert(journal, file, b"new\n")
    changed = change(file.read_bytes())  # type: ignore[operator]
    file.write_bytes(changed)
    for _ in range(2):  # the entry stays
        (error,) = errors(journal)
        assert error is not None
        assert "does not stand there any more, so nothing was taken back" in error
        assert "--undo --diff" in error
        assert file.read_bytes() == changed


@pytest.mark.parametrize(
    ("old", "place", "answer", "changed"),
    [
        (b"def add(a, b):\n    return ", 26, b"a + b", b"def add(a, b):\n    return b - a"),
        (b"import os\n", 0, b"# Time\n", b"# Cost\nimport os\n"),
        (b"    return b", 12, b".upper()", b"    return b.upper()[0]"),
    ],
)
def test_start_and_end_of_the_file_are_neighbours(
    journal: Journal, file: Path, old: bytes, place: int, answer: bytes, changed: bytes
) -> None:
    file.write_bytes(old)
    insert(journal, file, answer, place)
    file.write_bytes(changed)
    for _ in range(2):  # the entry stays
        (error,) = errors(journal)
        assert "does not stand there any more" in (error or "")
        assert file.read_bytes() == changed


def test_copy_that_was_there_before_is_not_mistaken_for_the_answer(journal: Journal, file: Path) -> None:
    block = TEXT[:200] + b"same\n" + TEXT[200:400]
    file.write_bytes(block + TEXT + TEXT[:400])
    insert(journal, file, b"same\n", len(block + TEXT) + 200)
    changed = block + TEXT + TEXT[:200] + b"other\n" + TEXT[200:400]
    file.write_bytes(changed)
    (error,) = errors(journal)
    assert "does not stand there any more" in (error or "")
    assert file.read_bytes() == changed


def test_entries_of_versions_that_kept_no_distances_are_found(journal: Journal, file: Path) -> None:
    insert(journal, file, b"new\n")
    (entry,) = journal.folder.glob("*.json")
    document = json.loads(entry.read_bytes())
    del document["distances"]
    entry.write_text(json.dumps(document))
    file.write_bytes(file.read_bytes() + b"more\n")
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT + b"more\n"


def test_refused_write_does_not_hold_up_those_before_it(journal: Journal, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.py"
    other.write_bytes(b"b\n")
    insert(journal, other, b"x", 0)
    insert(journal, file, b"new\n")
    file.unlink()
    first, second = errors(journal, 2)
    assert (first or "").startswith(f"{file}: cannot be read (No such file or directory)")
    assert (second, other.read_bytes()) == (None, b"b\n")


@pytest.mark.parametrize("elsewhere", [b"", b"line 3 changed\n"])
def test_text_that_is_as_before_already_counts_as_taken_back(journal: Journal, file: Path, elsewhere: bytes) -> None:
    insert(journal, file, b"new\n")
    file.write_bytes(elsewhere + TEXT)
    (undo,) = journal.undo(1)
    assert (undo.error, undo.edits, file.read_bytes()) == (None, (), elsewhere + TEXT)
    with pytest.raises(SourceFileError, match="nothing to take back"):
        journal.undo(1)


def test_dry_run_tells_and_changes_nothing(journal: Journal, file: Path) -> None:
    insert(journal, file, b"new\n")
    (undo,) = journal.undo(1, is_dry=True)
    assert undo.edits == (Edit(PLACE, b"new\n", b""),)
    assert errors(journal) == [None]


def test_refused_write_leaves_no_entry(journal: Journal, file: Path) -> None:
    with pytest.raises(SourceFileError, match="changed since it was read"):
        journal.write(file, TEXT + b"x", [Edit(0, b"", b"y")])
    assert file.read_bytes() == TEXT
    with pytest.raises(SourceFileError, match="nothing to take back"):
        journal.undo(1)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_journal_is_private_whatever_the_umask(journal: Journal, file: Path) -> None:
    before = os.umask(0)
    try:
        insert(journal, file, b"secret\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    names = os.listdir(journal.folder)
    assert len(names) == 2
    assert {stat.S_IMODE(journal.folder.joinpath(name).stat().st_mode) for name in names} == {0o600}


def test_journal_is_bounded_in_writes_and_bytes(journal: Journal, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    for number in range(5):
        insert(journal, file, b"%d\n" % number)
    assert len(journal.undo(9, is_dry=True)) == 3
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    insert(journal, file, b"x" * 8000)
    assert len(journal.undo(9, is_dry=True)) == 2
    insert(journal, file, b"y" * 50_000)
    assert [undo.write.edits[0].after[:1] for undo in journal.undo(9, is_dry=True)] == [b"y"]
    assert errors(journal) == [None]


def test_strange_entries_are_passed_over(journal: Journal, file: Path) -> None:
    insert(journal, file, b"new\n")
    for number, content in ((2, b""), (3, b"{}"), (4, b'{"format":99}'), (5, b"[1]"), (6, b"\xff")):
        journal.folder.joinpath(f"{number:012d}.json").write_bytes(content)
    journal.folder.joinpath("note.json").write_bytes(b"mine")
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_file_name_may_be_any_bytes(journal: Journal, tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.py"))
    file.write_bytes(TEXT)
    insert(journal, file, b"new\n")
    assert errors(journal) == [None]
    assert file.read_bytes() == TEXT


def test_journal_that_cannot_be_kept_refuses_the_write(journal: Journal, file: Path) -> None:
    journal.folder.parent.write_bytes(b"a file in the folder's place")
    with pytest.raises(
        SourceFileError, match=r"the journal of writes, which --undo needs, cannot be kept \(.*\); make room"
    ):
        insert(journal, file, b"new\n")
    assert file.read_bytes() == TEXT


def test_entry_holds_text_and_not_the_whole_file(journal: Journal, file: Path) -> None:
    file.write_bytes("é".encode() * 5000)
    insert(journal, file, b"new", 5001 * 2 - 2)
    entry = json.loads(journal.folder.joinpath("000000000001.json").read_bytes())
    (edit,) = entry["edits"]
    assert (edit[0], edit[1], edit[2], len(edit[3]), edit[4]) == (10000, "", "new", 100, "")


def test_processes_that_write_at_once_lose_nothing(journal: Journal, tmp_path: Path) -> None:
    """Three add lines to one file, each beginning again when another was first."""
    file = tmp_path / "shared.py"
    file.write_bytes(b"begin\n")
    command = [sys.executable, journal_program.__file__, "count", str(file), str(journal.folder), "8"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    lines = file.read_bytes().splitlines()
    assert (lines[0], len(lines), len(set(lines))) == (b"begin", 25, 4)
    assert errors(journal, 99) == [None] * 24
    assert file.read_bytes() == b"begin\n"
