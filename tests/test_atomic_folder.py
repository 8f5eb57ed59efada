"""A folder that appears whole or not at all: locks, leftovers of killed runs, replacement."""

import os
import signal
import subprocess
import sys

import pytest

from cg_local.atomic_folder import AtomicFolder
from cg_local.errors import QuantizeError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(destination, text, *, replace=False):
    with AtomicFolder(destination, QuantizeError) as folder:
        (folder.partial / "file").write_text(text)
        folder.commit(replace=replace)


def test_commit_leaves_the_folder_and_nothing_else(tmp_path):
    write(tmp_path / "a" / "model", "1")
    assert names(tmp_path / "a") == ["model"]
    assert (tmp_path / "a" / "model" / "file").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_leaving_by_an_exception_leaves_nothing(tmp_path, error):
    def fail_halfway():
        with AtomicFolder(tmp_path / "model", QuantizeError) as folder:
            (folder.partial / "file").write_text("1")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert names(tmp_path) == []


def test_commit_does_not_replace_unasked(tmp_path):
    write(tmp_path / "model", "1")
    with pytest.raises(QuantizeError, match="exists; remove it or choose another folder"):
        write(tmp_path / "model", "2")
    assert (tmp_path / "model" / "file").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_commit_replaces_when_asked(tmp_path):
    write(tmp_path / "model", "1")
    write(tmp_path / "model", "2", replace=True)
    assert (tmp_path / "model" / "file").read_text() == "2"
    assert names(tmp_path) == ["model"]


def test_failing_second_rename_moves_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "model", "1")
    rename = os.rename

    def failing(source, target):
        if str(source).endswith("folder"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(QuantizeError, match="cannot be finished"):
        write(tmp_path / "model", "2", replace=True)
    assert (tmp_path / "model" / "file").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_second_writer_is_refused_with_the_number_of_the_first(tmp_path):
    destination = tmp_path / "model"
    with (
        AtomicFolder(destination, QuantizeError),
        pytest.raises(QuantizeError, match=f"model: process {os.getpid()} is writing it now"),
        AtomicFolder(destination, QuantizeError),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
@pytest.mark.parametrize("moment", ["before the commit", "between the renames", "after the renames"])
def test_killed_run_leaves_the_old_folder_and_the_next_run_cleans_up(tmp_path, moment):
    write(tmp_path / "model", "1")
    steps = {"before the commit": 0, "between the renames": 1, "after the renames": 2}
    script = f"""
import os, signal, shutil
from pathlib import Path
from cg_local.atomic_folder import AtomicFolder
from cg_local.errors import QuantizeError
left, rename = [{steps[moment]}], os.rename
def counting(source, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    rename(source, target)
os.rename = counting
shutil.rmtree = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
with AtomicFolder(Path({str(tmp_path / "model")!r}), QuantizeError) as folder:
    (folder.partial / "file").write_text("2")
    folder.commit(replace=True)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with AtomicFolder(tmp_path / "model", QuantizeError):
        kept = (tmp_path / "model" / "file").read_text()
    assert kept == ("2" if moment == "after the renames" else "1")
    assert names(tmp_path) == ["model"]


def test_leftover_lock_of_a_dead_process_does_not_block(tmp_path):
    (tmp_path / ".model.lock").write_text("1\n")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "file").write_text("half")
    write(tmp_path / "model", "1")
    assert names(tmp_path) == ["model"]


def test_work_is_kept_for_the_next_entry_until_it_is_cleared_or_committed(tmp_path):
    with AtomicFolder(tmp_path / "model", QuantizeError, keeps_work=True) as folder:
        assert not folder.found_work
        (folder.workspace / "notes").write_text("1")
        (folder.partial / "file").write_text("1")
    assert names(tmp_path) == [".model.partial"]
    with AtomicFolder(tmp_path / "model", QuantizeError, keeps_work=True) as folder:
        assert folder.found_work
        assert (folder.workspace / "notes").read_text() == (folder.partial / "file").read_text() == "1"
        folder.clear()
        assert not folder.found_work
        assert names(folder.workspace) == ["folder"]
        (folder.workspace / "notes").write_text("2")
        (folder.partial / "file").write_text("2")
        folder.commit(replace=False)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["file"]


def test_discarded_work_is_not_kept(tmp_path):
    with AtomicFolder(tmp_path / "model", QuantizeError, keeps_work=True) as folder:
        folder.discard()
    assert names(tmp_path) == []


def test_kept_work_is_removed_by_who_keeps_none(tmp_path):
    with AtomicFolder(tmp_path / "model", QuantizeError, keeps_work=True) as folder:
        (folder.partial / "file").write_text("half")
    with AtomicFolder(tmp_path / "model", QuantizeError) as folder:
        assert names(folder.partial) == []
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_link_in_the_place_of_the_workspace_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("years of work")
    os.symlink(tmp_path / "elsewhere", tmp_path / ".model.partial")
    for keeps_work in (False, True):
        with (
            pytest.raises(QuantizeError, match="cannot be prepared"),
            AtomicFolder(tmp_path / "model", QuantizeError, keeps_work=keeps_work),
        ):
            pass
    assert names(tmp_path / "elsewhere") == ["thesis.txt"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whose permissions count")
def test_unwritable_parent_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(QuantizeError, match="cannot be prepared"):
        write(tmp_path / "model", "1")


def test_parent_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizeError, match="cannot be prepared"):
        write(tmp_path / "file" / "model", "1")
