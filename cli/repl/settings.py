"""What /set changes: how answers are sampled and shown.

This file owns the names, kinds and ranges of the settings. It applies none. Invariant: a setting has its kind and lies
in its range; a value that does not is refused, and the old one stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from cg_local.errors import ConfigError

MAX_SEED = 2**64 - 1
OFF_WORDS, ON_WORDS = ("off", "no", "false", "0"), ("on", "yes", "true", "1", "")


@dataclass
class ChatSettings:
    """The settings of one chat.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: choose among so many tokens; 0: all.
        top_p: choose among the tokens that make up this probability.
        min_p: drop tokens below this share of the best one's probability.
        repetition_penalty: divisor of tokens seen before; 1 is off.
        seed: makes sampling repeatable; None: a new one each time.
        max_tokens: of an answer; None: as many as the context holds.
        verbose: show what an answer took.
        markdown: render answers; or show them as written.
        wordwrap: break lines at words.
        history: keep what is typed on disk.
        vi: the keys of vi, not of emacs.
        force: let a model answer that is not tuned for chat.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    verbose: bool = False
    markdown: bool = True
    wordwrap: bool = True
    history: bool = True
    vi: bool = False
    force: bool = False

    def set(self, name: str, text: str) -> None:
        """Change a setting.

        Args:
            name: of the setting.
            text: the value as typed; "none" or "default" for a number that may be left out.

        Raises:
            ConfigError: there is no such setting, or it cannot have this value.
        """
        if name not in SUMMARIES:
            raise ConfigError(f"{name!r} is no setting; there are: {', '.join(SUMMARIES)}")
        value = _parsed(name, text.strip().lower())
        if value is None and name not in ("seed", "max_tokens"):
            low, high, kind = _RANGES[name]
            bounds = "" if high == math.inf else f" to {high:g}"
            raise ConfigError(f"{name} is {text!r}; it must be {kind} from {low:g}{bounds}")
        setattr(self, name, value)

    def as_text(self, name: str) -> str:
        """Return a setting's value as `set` takes it."""
        value = getattr(self, name)
        if value is None:
            return "none"
        return ("on" if value else "off") if isinstance(value, bool) else str(value)


SUMMARIES: Mapping[str, str] = {
    "temperature": "0 takes the most probable token",
    "top_k": "choose among the k most probable tokens; 0: all",
    "top_p": "choose among the tokens that make up this probability",
    "min_p": "drop tokens below this share of the best",
    "repetition_penalty": "divisor of tokens seen before; 1 is off",
    "seed": "makes sampling repeatable; none: a new one each time",
    "max_tokens": "of an answer; none: as many as the context holds",
    "verbose": "show what each answer took",
    "markdown": "render answers, or show them as written",
    "wordwrap": "break lines at words",
    "history": "keep what is typed on disk",
    "vi": "the keys of vi, not of emacs",
    "force": "let a model answer that is not tuned for chat",
}
"""Each setting in a few words, in the order in which they are shown."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")

_RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, math.inf, "a number"),
    "top_k": (0, math.inf, "a whole number"),
    "top_p": (1e-6, 1.0, "a number"),
    "min_p": (0.0, 1.0, "a number"),
    "repetition_penalty": (1e-6, math.inf, "a number"),
    "seed": (0, MAX_SEED, "a whole number"),
    "max_tokens": (1, math.inf, "a whole number"),
}


def _parsed(name: str, text: str) -> float | int | bool | None:
    """Return the value; None for "none", and for what is out of range."""
    if name not in _RANGES:
        return _switch(name, text)
    low, high, kind = _RANGES[name]
    if text in ("none", "default") and name in ("seed", "max_tokens"):
        return None
    try:
        value = int(text) if kind == "a whole number" else float(text)
    except ValueError:
        value = math.nan
    # Not math.isfinite: a whole number of hundreds of digits is too large for it.
    if not (low <= value <= high and value != math.inf):
        if name in ("seed", "max_tokens"):
            raise ConfigError(f"{name} is {text!r}; it must be {kind} from {low:g}, or none")
        return None
    return value


def _switch(name: str, text: str) -> bool:
    if text in ON_WORDS:
        return True
    if text in OFF_WORDS:
        return False
    raise ConfigError(f"{name} is {text!r}; it must be on or off")


assert tuple(SUMMARIES) == tuple(field.name for field in fields(ChatSettings))
