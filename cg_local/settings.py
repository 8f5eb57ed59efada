"""What a user has set: config.toml and CG_LOCAL_* variables, judged before anything uses them.

This file owns the names of the settings, what they may be, and which source wins. It does not know where they are
used. Invariant: a value that leaves this file has the type and range of its setting, and one that has not is an error
of one line that names file, line and key, or the variable.

From the strongest to the weakest: an option of the command line (the parser's work), the variable of a command
(CG_LOCAL_FILL_TEMPERATURE), the variable of all commands (CG_LOCAL_TEMPERATURE), the command's table in config.toml
(`[fill]`), a key before all tables, and the built-in default (the command's work again). An empty variable counts as
none. CG_LOCAL_CONFIG names another file than config.toml in the user's configuration folder of the platform.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cg_local.errors import SettingsError
from cg_local.model_store import config_path

MAX_CONFIG_BYTES = 1 << 20
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) *(?P<unit>[KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_TABLE_LINE = re.compile(r"\s*\[\s*(?P<table>[^\[\]]+?)\s*\]\s*(?:#.*)?")


@dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: the key; the option of the same name has dashes for underscores.
        kind: "text", "flag", "whole number", "number" or "size" (bytes, or a text such as "4 GiB").
        commands: whose default it is, and whose table may have it.
        summary: for people.
        low, high: bounds of a number, themselves allowed unless `is_low_open`.
        choices: of a text; () for any.
    """

    name: str
    kind: str
    commands: tuple[str, ...]
    summary: str
    low: float = -math.inf
    high: float = math.inf
    is_low_open: bool = False
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a value must be, for messages."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.kind == "size":
            return 'a size such as "4 GiB", or 0'
        words = {"text": "a text in quotes", "flag": "true or false"}.get(self.kind, f"a {self.kind}")
        if self.low > -math.inf:
            words += f" above {self.low:g}" if self.is_low_open else f" of at least {self.low:g}"
        return words + (f" and at most {self.high:g}" if self.high < math.inf else "")

    def judged(self, value: object) -> object:
        """Return a value of config.toml as it is used.

        Raises:
            ValueError: it has not the type or range; without a message.
        """
        if self.kind == "size":
            parsed_size(value)
            return str(value)
        types: dict[str, tuple[type, ...]] = {"text": (str,), "flag": (bool,), "whole number": (int,)}
        if not isinstance(value, types.get(self.kind, (int, float))) or isinstance(value, bool) != (
            self.kind == "flag"
        ):
            raise ValueError
        if isinstance(value, (int, float)) and self.kind != "flag":
            is_above = self.low < value if self.is_low_open else self.low <= value
            # Not math.isfinite: a whole number of hundreds of digits is too large for it, and for float.
            if not (value < math.inf and is_above and value <= min(self.high, sys.float_info.max)):
                raise ValueError
            return float(value) if self.kind == "number" else value
        if self.name == "model" and isinstance(value, str):
            return os.path.expanduser(value)  # no shell does it here
        if self.choices and value not in self.choices:
            raise ValueError
        return value

    def parsed(self, text: str) -> object:
        """Return the text of a variable, or of a command line, as it is used.

        Raises:
            ValueError: it has not the type or range.
        """
        if self.kind == "flag":
            if text.strip().lower() not in _TRUE + _FALSE:
                raise ValueError
            return text.strip().lower() in _TRUE
        if self.kind == "whole number":
            return self.judged(int(text))
        return self.judged(float(text) if self.kind == "number" else text)


COMMANDS = ("fill", "complete", "chat")
"""Those that have defaults to be set."""

SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("model", "text", COMMANDS, "name or folder of the model"),
        Setting("scheme", "text", COMMANDS, "how to quantize the embedded model", choices=("q4", "q4s", "q8", "bf16")),
        Setting("threads", "whole number", COMMANDS, "threads of the kernels", low=1),
        Setting("kv_dtype", "text", COMMANDS, "how K and V are kept", choices=("float16", "float32", "int8")),
        Setting("speculation", "flag", COMMANDS, "compute guessed tokens where that saves time"),
        Setting("max_tokens", "whole number", COMMANDS, "tokens to write at most", low=1),
        Setting("temperature", "number", COMMANDS, "0 takes the most probable token", low=0),
        Setting("top_k", "whole number", COMMANDS, "choose among the k most probable tokens; 0: all", low=0),
        Setting("top_p", "number", COMMANDS, "choose among the tokens of this probability", 0, 1, is_low_open=True),
        Setting("min_p", "number", COMMANDS, "drop tokens below this share of the best", 0, 1),
        Setting("repetition_penalty", "number", COMMANDS, "divisor of tokens seen before", 0, is_low_open=True),
        Setting("context_tokens", "whole number", COMMANDS, "tokens of the prompt (chat: of all) at most", low=64),
        Setting("context", "text", ("fill",), "other files for the model", choices=("auto", "repo", "file")),
        Setting("max_wait", "text", ("fill",), "what reading the prompt may take, such as 3s"),
        Setting("system", "text", ("chat",), "what the model should know or be like"),
        Setting("save", "flag", ("chat",), "save conversations"),
        Setting("vi", "flag", ("chat",), "the keys of vi instead of emacs"),
        Setting("markdown", "flag", ("chat",), "Markdown and colours on a terminal"),
        Setting("verbose", "flag", ("chat",), "show what each answer took"),
        Setting("kv_cache_size", "size", ("chat", "fill"), "of the K and V kept on disk; 0: none"),
    )
}


@dataclass(frozen=True)
class SetValue:
    """A value and where it comes from.

    Attributes:
        value: judged.
        origin: the variable, or the file with the line.
    """

    value: Any
    origin: str


class Settings:
    """What the file and the variables say; read and judged as a whole when it is made.

    Args:
        path: of the file; None: `config_path()`. It need not exist.

    Raises:
        SettingsError: the file cannot be read, is no TOML, or has a key or value that is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or config_path()
        self._values: dict[tuple[str, str], SetValue] = {}
        text = _read(self.path)
        if text is not None:
            self._take_file(text)

    def value(self, command: str, name: str) -> SetValue | None:
        """Return what is set for a command; None where the built-in default holds.

        Raises:
            SettingsError: a variable has a value that is none.
        """
        setting = SETTINGS[name]
        for variable in (f"CG_LOCAL_{command}_{name}".upper(), f"CG_LOCAL_{name}".upper()):
            if text := os.environ.get(variable):
                try:
                    return SetValue(setting.parsed(text), variable)
                except ValueError:
                    raise SettingsError(f"{variable} is {text!r}; give {setting.expected}") from None
        return self._values.get((command, name)) or self._values.get(("", name))

    def of_command(self, command: str) -> dict[str, SetValue]:
        """Return everything that is set for a command, by name."""
        names = [setting.name for setting in SETTINGS.values() if command in setting.commands]
        found = {name: self.value(command, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def _take_file(self, text: str) -> None:
        document = _parsed(text, self.path)
        for key, value in document.items():
            if key not in COMMANDS:
                self._take(text, "", key, value)
            elif isinstance(value, dict):
                for name, inner in value.items():
                    self._take(text, key, name, inner)
            else:
                shown = f"{value!r}"[:60]
                raise SettingsError(f"{self._where(text, '', key)}: {key} is {shown}; write [{key}] and its keys below")

    def _take(self, text: str, table: str, key: str, value: object) -> None:
        where = self._where(text, table, key)
        name = f"{table}.{key}" if table else key
        _check_key(table, key, where)
        try:
            judged = SETTINGS[key].judged(value)
        except ValueError:
            shown = f"{value!r}"[:60]
            raise SettingsError(f"{where}: {name} is {shown}; give {SETTINGS[key].expected}") from None
        self._values[table, key] = SetValue(judged, where)

    def _where(self, text: str, table: str, key: str) -> str:
        line = _line_of(text, table, key)
        return f"{self.path}:{line}" if line else str(self.path)


def judged_text(key: str, text: str | None) -> tuple[str, str, object]:
    """Judge a key such as "temperature" or "chat.temperature", and its value as a person types it.

    Args:
        key: what is to be set.
        text: the value; None where there is none to be judged.

    Returns:
        Table ("" for none), name and value.

    Raises:
        SettingsError: an unknown key, or a value that it cannot have.
    """
    table, _, name = key.rpartition(".")
    _check_key(table, name, key)
    try:
        return table, name, None if text is None else SETTINGS[name].parsed(text)
    except ValueError:
        raise SettingsError(f"{key} is {text!r}; give {SETTINGS[name].expected}") from None


def _check_key(table: str, name: str, where: str) -> None:
    is_known = name in SETTINGS and (not table or table in SETTINGS[name].commands)
    if not is_known:
        shown = f"{table}.{name}" if table else name
        raise SettingsError(f"{where}: unknown key {shown!r}{_suggestion(table, name)}")


def config_folder() -> Path:
    """Return the folder of config.toml and of the user's templates."""
    return config_path().parent


def parsed_size(value: object) -> int:
    """Return bytes of a number or of a text such as "4 GiB" or "500MB".

    Raises:
        ValueError: neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    if isinstance(value, int):
        if value < 0:
            raise ValueError
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError
    return int(float(match["number"]) * _UNITS[(match["unit"] or "B").lower()])


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise SettingsError(f"{path}: {cause.strerror}; make it readable, or set CG_LOCAL_CONFIG") from cause
    if len(data) > MAX_CONFIG_BYTES:
        raise SettingsError(f"{path}: more than {MAX_CONFIG_BYTES:,} bytes; a configuration has a few lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise SettingsError(f"{path}: byte {cause.start} is no UTF-8; save it as UTF-8") from cause


def _parsed(text: str, path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as cause:
        found = re.search(r"\(at line (\d+), column \d+\)", str(cause))
        where = f"{path}:{found[1] if found else len(text.splitlines())}"  # or "(at end of document)"
        fault = str(cause).partition(" (at ")[0]
        raise SettingsError(f"{where}: not TOML ({fault}); `cg-local config edit` opens it") from cause
    return document


def _line_of(text: str, table: str, key: str) -> int | None:
    """Return the line in which a key stands, from 1; None for spellings that are not looked for.

    tomllib does not tell, and this is only for messages and `config show`.
    """
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _TABLE_LINE.fullmatch(line):
            inside = match["table"].strip("'\"")
            if not table and inside == key:
                return number
        names = [part.strip().strip("'\"") for part in line.partition("=")[0].split(".")]
        if "=" in line and [inside, *names] in ([table, key], ["", table, key]):
            return number
    return None


def _suggestion(table: str, key: str) -> str:
    import difflib

    known = [name for name, setting in SETTINGS.items() if not table or table in setting.commands]
    known += [] if table else list(COMMANDS)
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
