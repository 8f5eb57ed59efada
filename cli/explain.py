"""How sure the model was of each token of an answer, and what it might have written instead.

This file owns the lines that say so. Invariant: what a pipe gets has no escape sequence; on a terminal colours only
repeat what the figures say.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cg_local.cli.repl.ink import COLORS, Ink
from cg_local.cli.terminal_text import visible_text

if TYPE_CHECKING:
    from cg_local.answers import Infill
    from cg_local.tokenizer import Tokenizer

NUM_ALTERNATIVES = 3
"""Shown beside each token."""
_MIN_SHOWN = 0.005
# From these probabilities on a token has the look beside it.
_LOOKS = ((0.8, "added"), (0.4, ""), (0.15, "warning"), (0.0, "error"))


@dataclass(frozen=True)
class ExplainedToken:
    """One token of an answer.

    Attributes:
        text: what it stands for; the name of a control token; "\\ufffd" for bytes that are no whole character.
        logprob: natural logarithm of its probability.
        alternatives: texts and log-probabilities of the most probable other tokens.
        is_kept: its text is part of the answer; else it was cut off, ended the answer, or stands for no text.
    """

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]
    is_kept: bool


def explained_tokens(result: Infill, tokenizer: Tokenizer) -> list[ExplainedToken]:
    """Return the tokens of an answer that was asked for with `top_logprobs`, and the one that ended it."""
    token_ids = (*result.token_ids, *(() if result.stop_id is None else (result.stop_id,)))
    # Cuts take away an end; other changes, of indentation or line breaks, only touch blanks. Bytes, as a character may
    # be made of several tokens.
    num_left = _num_filled_bytes(result.text.encode())
    tokens = []
    for token_id, logprob, top in zip(token_ids, result.token_logprobs, result.top_logprobs, strict=False):
        text = _text(tokenizer, token_id)
        data = tokenizer.token_bytes(token_id)
        is_kept = num_left > 0 and data != b""
        num_left -= _num_filled_bytes(data)
        others = tuple((_text(tokenizer, each.token_id), each.logprob) for each in top if each.token_id != token_id)
        tokens.append(ExplainedToken(text, logprob, others[:NUM_ALTERNATIVES], is_kept))
    return tokens


def explanation(tokens: list[ExplainedToken], ink: Ink) -> str:
    """Return the answer's tokens line by line, each with its probability and what else was likely.

    With colours, the answer itself comes first, each token in the colour of its probability.
    """
    lines = []
    if ink.level == COLORS:
        answer = "".join(_drawn(token, token.text, ink) for token in tokens if token.is_kept)
        lines += [answer.rstrip("\n"), ""]
    width = min(24, max((len(_quoted(token.text)) for token in tokens), default=0))
    for token in tokens:
        others = [f"{_quoted(text)} {math.exp(logprob):.2f}" for text, logprob in token.alternatives]
        likely = [
            o for o, (_, logprob) in zip(others, token.alternatives, strict=True) if math.exp(logprob) >= _MIN_SHOWN
        ]
        mark = "" if token.is_kept else "  (not kept)"
        shown = _drawn(token, f"{_quoted(token.text):<{width}}", ink)
        line = f"{math.exp(token.logprob):.2f}  {shown}  {', '.join(likely)}"
        lines.append(f"{line.rstrip()}{mark}")
    return "".join(f"{line}\n" for line in lines)


def token_documents(tokens: list[ExplainedToken]) -> list[dict[str, Any]]:
    """Return the member `tokens` of a candidate's document."""
    return [
        {
            "text": token.text,
            "logprob": round(token.logprob, 4),
            "is_kept": token.is_kept,
            "alternatives": [{"text": text, "logprob": round(logprob, 4)} for text, logprob in token.alternatives],
        }
        for token in tokens
    ]


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    data = tokenizer.token_bytes(token_id)
    return data.decode("utf-8", errors="replace") if data else tokenizer.piece(token_id)


def _num_filled_bytes(data: bytes) -> int:
    return len(b"".join(data.split()))


def _quoted(text: str) -> str:
    return visible_text(json.dumps(text, ensure_ascii=False))


def _drawn(token: ExplainedToken, text: str, ink: Ink) -> str:
    look = next(look for low, look in _LOOKS if math.exp(token.logprob) >= low)
    # Line by line: a terminal may colour the rest of a line in which a style is open.
    return "\n".join(ink.draw(visible_text(line), look) for line in text.split("\n"))
