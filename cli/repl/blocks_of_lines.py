'''Questions of several lines between marks: """ as in Ollama, !multi as in llm.

This file owns when such a text is complete and what of it is the question. Invariant: a text without marks is itself.
'''

from __future__ import annotations

QUOTES = '"""'
_BEGIN, _END = "!multi", "!end"


def needs_more_lines(text: str) -> bool:
    """Whether a text begins with a mark whose counterpart is still to come."""
    if text.startswith(QUOTES):
        return text.count(QUOTES) == 1
    if _is_multi(text):
        return _end_line(text) not in [line.strip() for line in text.split("\n")[1:]]
    return False


def without_marks(text: str) -> str:
    """Return the question between the marks."""
    if text.startswith(QUOTES) and text.count(QUOTES) > 1:
        inside, _, after = text[len(QUOTES) :].rpartition(QUOTES)
        return (inside.strip("\n") + after).strip("\n")
    if _is_multi(text):
        lines = text.split("\n")[1:]
        end = next((place for place, line in enumerate(lines) if line.strip() == _end_line(text)), len(lines))
        return "\n".join(lines[:end])
    return text


def _is_multi(text: str) -> bool:
    first = text.split("\n", 1)[0].split()
    return first[:1] == [_BEGIN] and len(first) <= 2


def _end_line(text: str) -> str:
    """The line that ends the text; a word behind the first mark stands behind the last one too."""
    return text.split("\n", 1)[0].strip().replace(_BEGIN, _END, 1)
