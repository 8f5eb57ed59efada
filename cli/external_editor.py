"""The user's own editor, for a text or a file.

This file owns which program that is and how a text goes there and back. Invariant: the text that was given in is
returned unless the editor was left without an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from cg_local.errors import ConfigError

_UNIX_EDITORS = ("sensible-editor", "nano", "vim", "vi", "emacs")


def editor_command() -> list[str]:
    """Return the program with its arguments: $VISUAL, $EDITOR, or one that is usual on the platform.

    Raises:
        ConfigError: there is none, or none was named and there is no terminal for a usual one.
    """
    for variable in ("VISUAL", "EDITOR"):
        if value := os.environ.get(variable, "").strip():
            # A path with backslashes is no shell syntax.
            return [part.strip('"') for part in shlex.split(value, posix=os.name != "nt")]
    # As git has it: whoever names an editor may mean one that needs no terminal.
    if sys.platform != "win32" and not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise ConfigError("there is no terminal for an editor; run this in one, or name an editor in EDITOR")
    known = ("notepad",) if sys.platform == "win32" else _UNIX_EDITORS
    found = next((name for name in known if shutil.which(name)), None)
    if found is None:
        raise ConfigError("no editor found; set the environment variable EDITOR to the command of yours")
    return [found]


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def edit_file(path: Path) -> None:
    """Let the user edit a file.

    Raises:
        ConfigError: the editor cannot be started, or says by its status that it failed.
    """
    command = editor_command()
    try:
        status = subprocess.run([*command, str(path)], check=False).returncode
    except OSError as cause:
        raise ConfigError(
            f"{command[0]}: cannot be started ({cause.strerror}); set EDITOR to another editor"
        ) from cause
    if status != 0:
        raise ConfigError(f"{command[0]}: ended with status {status}; what was written there is not used")


def edit_text(text: str) -> str:
    """Let the user edit a text; return it without line breaks at its end.

    Raises:
        ConfigError: as `edit_file`, or the temporary file cannot be written or read.
    """
    handle, name = tempfile.mkstemp(prefix="cg-local-", suffix=".md")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        edit_file(Path(name))
        return Path(name).read_text(encoding="utf-8").replace("\r\n", "\n").rstrip("\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"{name}: cannot be written or read ({cause}); check the folder of temporary files"
        ) from cause
    finally:
        Path(name).unlink(missing_ok=True)
