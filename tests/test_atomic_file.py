"""Files replaced whole or not at all: what stays, what is refused, and what an error leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cg_local.atomic_file import check_replaceable, partial_path, replace_file, replace_known
from cg_local.errors import SettingsError, SourceFileError

OLD, NEW = b"old\n" * 5000, b"new and longer\n" * 9000
is_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
is_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "a.py"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more, in the middle of a file, as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_known_content_is_replaced_and_nothing_lies_beside_it(file: Path) -> None:
    replace_known(file, OLD, NEW, "token")
    assert file.read_bytes() == NEW
    assert os.listdir(file.parent) == ["a.py"]


def test_changed_and_removed_files_are_left_alone(file: Path) -> None:
    file.write_bytes(OLD + b"more")
    with pytest.raises(SourceFileError, match=r"a\.py: changed since it was read; nothing was written"):
        replace_known(file, OLD, NEW, "token")
    assert file.read_bytes() == OLD + b"more"
    assert os.listdir(file.parent) == ["a.py"]
    file.unlink()
    with pytest.raises(SourceFileError, match=r"a\.py: no such file"):
        replace_known(file, OLD, NEW, "token")
    assert os.listdir(file.parent) == []


def test_file_that_changes_while_the_new_content_is_written_is_left_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def edit(descriptor: int) -> None:
        sync(descriptor)
        file.write_bytes(b"somebody else's")

    monkeypatch.setattr(os, "fsync", edit)
    with pytest.raises(SourceFileError, match="changed since it was read"):
        replace_known(file, OLD, NEW, "token")
    assert file.read_bytes() == b"somebody else's"


@is_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o4755])
def test_mode_stays_and_the_time_is_new(file: Path, mode: int) -> None:
    file.chmod(mode)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    replace_known(file, OLD, NEW, "token")
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert file.stat().st_mtime > 1_600_000_000
    replace_file(file, OLD)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.skipif(not is_root, reason="only the superuser gives files away")
def test_owner_and_group_stay(file: Path) -> None:
    os.chown(file, 1234, 4321)
    file.chmod(0o6750)
    for write in (lambda: replace_known(file, OLD, NEW, "token"), lambda: replace_file(file, OLD)):
        write()
        status = file.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o6750)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="needs extended attributes")
def test_extended_attributes_stay(file: Path) -> None:
    try:
        os.setxattr(file, "user.note", b"kept")
    except OSError:
        pytest.skip("this file system has none")
    replace_known(file, OLD, NEW, "token")
    assert os.getxattr(file, "user.note") == b"kept"


@is_posix
def test_content_is_never_readable_by_more_people_than_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o600)
    seen: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(stat.S_IMODE(os.fstat(fd).st_mode)), sync(fd)))
    replace_known(file, OLD, NEW, "token")
    assert seen[0] == 0o600


@is_posix
def test_links_are_followed_and_stay(file: Path) -> None:
    folder = file.parent.parent
    folder.joinpath("one").symlink_to("two")
    folder.joinpath("two").symlink_to(file)
    replace_known(folder / "one", OLD, NEW, "token")
    assert (file.read_bytes(), os.readlink(folder / "one"), os.readlink(folder / "two")) == (NEW, "two", str(file))
    assert sorted(os.listdir(folder)) == ["folder", "one", "two"]


@is_posix
def test_what_cannot_be_replaced_is_refused_beforehand_in_one_line(file: Path) -> None:
    folder = file.parent
    folder.joinpath("loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    for name, message in (("loop", "cannot be found"), ("pipe", "not a regular file"), ("none", "no such file")):
        with pytest.raises(SourceFileError, match=message):
            check_replaceable(folder / name)
    os.link(file, folder / "b.py")
    with pytest.raises(SourceFileError, match=r"a\.py: has 2 names \(hard links\)"):
        replace_known(file, OLD, NEW, "token")
    folder.joinpath("b.py").unlink()
    file.chmod(0o444)
    with pytest.raises(SourceFileError, match=r"a\.py: read-only \(mode 444\); make it writable \(chmod u\+w "):
        replace_known(file, OLD, NEW, "token")
    assert file.read_bytes() == OLD


@is_posix
def test_file_of_another_user_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(SourceFileError, match=r"belongs to user \d+, and a write would make it yours"):
        check_replaceable(file)


@is_posix
def test_file_that_only_others_may_write_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    file.chmod(0o644)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceFileError, match=r"a\.py: not yours to write \(mode 644, user \d+\)"):
        check_replaceable(file)


@is_posix
def test_group_that_cannot_be_kept_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("cg_local.atomic_file._keep_owner", refuse)
    with pytest.raises(SourceFileError, match="you are not in its group"):
        replace_known(file, OLD, NEW, "token")
    assert (file.read_bytes(), os.listdir(file.parent)) == (OLD, ["a.py"])


@pytest.mark.skipif(is_root or os.name == "nt", reason="the superuser writes everywhere")
def test_folder_that_cannot_be_written_is_said(file: Path) -> None:
    file.parent.chmod(0o555)
    try:
        with pytest.raises(SourceFileError, match=r"make the folder .* writable: the new content is written beside"):
            replace_known(file, OLD, NEW, "token")
    finally:
        file.parent.chmod(0o755)
    assert file.read_bytes() == OLD


@is_posix
@pytest.mark.parametrize("limit", [0, 1, 4096, len(NEW) - 1])
def test_write_that_stops_in_the_middle_leaves_the_old_file(file: Path, limit: int) -> None:
    with largest_file(limit), pytest.raises(SourceFileError, match=r"a\.py: cannot be written \(File too large\), so"):
        replace_known(file, OLD, NEW, "token")
    with largest_file(limit), pytest.raises(SettingsError, match="cannot be written"):
        replace_file(file, NEW)
    assert (file.read_bytes(), os.listdir(file.parent)) == (OLD, ["a.py"])


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room on the disk of "),
        (errno.EACCES, "make the folder "),
        (errno.EROFS, "check the disk"),
        (errno.EXDEV, "check the disk"),
        (errno.EIO, "check the disk"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace", "open", "utime", "copystat"])
def test_error_at_any_step_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil if step == "copystat" else os, step, fail)
    with pytest.raises(SourceFileError) as caught:
        replace_known(file, OLD, NEW, "token")
    monkeypatch.undo()
    assert f"({os.strerror(number)}), so it is as it was; {remedy}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (file.read_bytes(), os.listdir(file.parent)) == (OLD, ["a.py"])


def test_longest_name_has_a_partial_one(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)
    file.write_bytes(OLD)
    replace_known(file, OLD, NEW, "0123456789abcdef")
    assert file.read_bytes() == NEW
    assert partial_path(file, "t").name == "." + "ä" * 40 + ".t.cg-local"


def test_new_file_gets_folders_and_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y.json"
    replace_file(path, NEW, 0o600)
    assert path.read_bytes() == NEW
    assert os.name == "nt" or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_full_disk_is_told_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SettingsError, match=r"new: cannot be written \(No space left on device\); make room on the disk"
    ):
        replace_file(tmp_path / "new", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="owners of POSIX")
def test_file_whose_group_or_folder_forbids_the_exchange_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.py"
    file.write_text("x")
    assert check_replaceable(file) == file.resolve()
    status, whole = file.stat(), Path.stat
    strange = max(status.st_gid, os.getegid(), *os.getgroups()) + 1
    alien = os.stat_result((*status[:4], 1000, strange, *status[6:]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        patch.setattr(Path, "stat", lambda path, **how: alien if path.name == "a.py" else whole(path, **how))
        with pytest.raises(SourceFileError, match=f"belongs to group {strange}"):
            check_replaceable(file)
    if os.geteuid():
        tmp_path.chmod(0o555)
    else:  # whom permissions do not bind
        monkeypatch.setattr(os, "access", lambda *arguments, **how: False)
    try:
        with pytest.raises(SourceFileError, match=r"the folder .* cannot be written"):
            check_replaceable(file)
    finally:
        tmp_path.chmod(0o755)
    assert file.read_text() == "x"
