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
            self._values = _read(self._command) if _is_anything_set() else {}
        return self._values


def _is_anything_set() -> bool:
    """Whether there may be a setting; judging them takes some milliseconds of a fill's start."""
    from cg_local.model_store import config_path

    return any(name.startswith("CG_LOCAL_") for name in os.environ) or config_path().exists()


def _read(command: str) -> dict[str, Any]:
    from cg_local.settings import COMMANDS, Settings

    found = Settings().of_command(command) if command in COMMANDS else {}
    return {name: value.value for name, value in found.items()}
