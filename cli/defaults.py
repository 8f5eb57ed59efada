"""What a user has set, as the defaults of a command's options.

This file owns the way from settings to the parser. Invariant: settings are read when a command has been chosen and
asks for a default, not earlier, and an option of the command line wins over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from cg_local.cli.app import COMPLETE_VARIABLE


def configured_defaults(command: str) -> Mapping[str, Any]:
    """Return the defaults of a command's options by parameter, read when the first one is asked for.

    Args:
        command: of `cg_local.settings.COMMANDS`; every other one has none.
    """
    # A shell that completes a word must not meet an error of the configuration.
    return {} if COMPLETE_VARIABLE in os.environ else _Defaults(command)


class _Defaults(Mapping[str, Any]):
    def __init__(self, command: str) -> None:
        self._command = command
        self._values: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, Any]:
        if self._values is None:
            from cg_local.settings import COMMANDS, Settings

            is_set = self._command in COMMANDS
            found = Settings().of_command(self._command) if is_set else {}
            self._values = {name: value.value for name, value in found.items()}
        return self._values
