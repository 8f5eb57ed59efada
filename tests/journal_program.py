"""A process that writes and takes back, in turns, until it is killed; it loads no model.

    python journal_program.py kill-random FILE JOURNAL TIMES  children that write and take back, killed at any moment
    python journal_program.py kill-each FILE JOURNAL ACTION   children that write, or undo, once: killed before their
                                                              first operation on the file system, the second, ...
    python journal_program.py count FILE JOURNAL TIMES        adds TIMES lines to FILE, each in a write of its own

Two contents alternate: that of `OLD`, and `OLD` with `EDITS`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from cg_local.errors import SourceFileError
from cg_local.infill.edit import Edit, apply_edits
from cg_local.infill.journal import Journal

OLD = b"".join(b"%05d\r\n" % number for number in range(4000))
EDITS = (Edit(700, b"", b"# first\n" * 500), Edit(14_000, OLD[14_000:15_400], b"# second"))
NEW = apply_edits(OLD, EDITS)
LONGEST_SECONDS = 0.05


def take_turns(file: Path, journal: Journal, *, is_endless: bool) -> None:
    """Write, take back, write, ..."""
    while True:
        data = file.read_bytes()
        if data == OLD:
            journal.write(file, data, EDITS)
        else:
            assert [undo.error for undo in journal.undo(1)] == [None]
        if not is_endless:
            return


def die_at(number: int) -> None:
    """Let this process be killed at one of its operations that Python tells of, before it happens."""
    operations = {"open", "os.listdir", "os.rename", "os.remove", "os.chmod", "os.chown", "os.utime", "os.mkdir"}
    count = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in operations:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def check_whole(file: Path, journal: Journal) -> bytes:
    """Check the file, that the next process can work, and that it cleans up; returns what was found."""
    found = file.read_bytes()
    assert found in (OLD, NEW)
    assert file.stat().st_mode & 0o777 == 0o640
    if found == OLD:
        journal.write(file, OLD, EDITS)
    # A write that was killed early may have left an entry; there is nothing to take back then.
    assert [undo.error for undo in journal.undo(9)][1:] in ([], [None])
    assert file.read_bytes() == OLD
    assert os.listdir(file.parent) == [file.name]
    assert sorted(os.listdir(journal.folder)) == ["lock"]
    return found


def kill_random(file: Path, journal: Journal, times: int) -> None:
    """Kill children that take turns for ever; say what each left, "old" or "new"."""
    moments = random.Random(times)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            take_turns(file, journal, is_endless=True)
        time.sleep(moments.uniform(0, LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        say(check_whole(file, journal))


def kill_each(file: Path, journal: Journal, action: str) -> None:
    """Kill a child at each of its operations in turn, until one comes to its end; say what each left."""
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        if action == "undo":
            journal.write(file, OLD, EDITS)
        child = os.fork()
        if child == 0:
            die_at(number)
            take_turns(file, journal, is_endless=False)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        say(check_whole(file, journal))
    assert status == 0


def say(found: bytes) -> None:
    """Tell the test what a killed process left."""
    print("old" if found == OLD else "new", flush=True)


def add_lines(file: Path, journal: Journal, times: int) -> None:
    """Add lines to a file that others change too; begin again whenever one of them was first."""
    while times:
        data = file.read_bytes()
        try:
            journal.write(file, data, [Edit(len(data), b"", b"%d\n" % os.getpid())])
            times -= 1
        except SourceFileError as error:
            if "changed since it was read" not in str(error):
                raise


def main() -> None:
    """Do what the arguments say."""
    action, file, journal, argument = sys.argv[1], Path(sys.argv[2]), Journal(Path(sys.argv[3])), sys.argv[4]
    if action == "count":
        add_lines(file, journal, int(argument))
    elif action == "kill-each":
        kill_each(file, journal, argument)
    else:
        kill_random(file, journal, int(argument))


if __name__ == "__main__":
    main()
