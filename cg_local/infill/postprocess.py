"""Where the middle ends and what of it is kept.

This file owns the modes (line, block), the stops that are taken while text is being generated, and the trimming of what
runs into the text after the gap. It knows no tokens and no model. Invariant: what `push` has returned so far is a
beginning of the final text, whatever comes next, so a terminal never shows text that is taken back.

A stop names itself (`line`, `block`, `suffix`, `repetition`); a cut names itself in `trimmed`: `line`, `block`,
`suffix_overlap`, `repetition` or `blank_tail`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cg_local.infill.syntax import (
    BLANK,
    CLOSERS,
    Scan,
    Scanner,
    Syntax,
    first_indentation,
    indentation,
    opens_block,
    scan,
    syntax_of,
)

MODES = ("auto", "line", "block")

# How far around the gap brackets and strings are looked at: a statement of more lines is hardly ever written by hand.
_CONTEXT_LINES = 200
_CONTEXT_CHARS = 20_000
# One line that equals the next line of the file ends the middle at once from this length on; shorter ones ("else:",
# "pass", "}") are often meant, and are cut only at the very end.
_TELLING_LINE_CHARS = 8
# A run is a repetition when lines of a period up to 4 stand 4 times over.
_MAX_PERIOD_LINES = 4
_MAX_COPIES = 4
# More lines are never looked at: longer runs have been stopped, so at most these and one period before them count.
_MAX_TAIL_LINES = (_MAX_COPIES + 1) * _MAX_PERIOD_LINES
_STUTTER = re.compile(r"(.{1,12}?)\1{23}\Z", re.DOTALL)
_TWOBLANK_LINES = re.compile(r"\n[ \t]*\n[ \t]*\n")


@dataclass(frozen=True)
class GapShape:
    """How the gap lies in its lines.

    Attributes:
        line_prefix: text left of the gap on its line.
        line_suffix: text right of the gap on its line; "" where the gap consists of whole lines.
        following: the next lines of the file that are not blank, without trailing blanks.
        is_whole_lines: the gap starts at a line start and the text after it too, so the middle ends with a line break.
        line_quote: the string or comment that is open at the start of the gap's line (see `Scan.quote`).
        quote: the same at the gap.
        closes_quote: the text after the gap closes the string that is open at the gap.
        num_closable: how many brackets opened before the gap the middle may close; the text after it closes the rest.
        next_closer: the first closer after the gap whose bracket was opened before it; "" if there is none.
    """

    line_prefix: str
    line_suffix: str
    following: tuple[str, ...]
    is_whole_lines: bool
    line_quote: str
    quote: str
    closes_quote: bool
    num_closable: int
    next_closer: str


def gap_shape(prefix: str, suffix: str, syntax: Syntax) -> GapShape:
    """Describe the gap between a prefix and a suffix."""
    line_prefix = prefix[prefix.rfind("\n") + 1 :]
    is_whole_lines = not line_prefix and not suffix.startswith("\n")
    head = suffix[:_CONTEXT_CHARS].split("\n")[:_CONTEXT_LINES]
    near = _near_prefix(prefix)
    before = scan(near, syntax)
    after = scan(_near_suffix(head), syntax, before.quote)
    closers = [closer for _, closer in after.unmatched]
    return GapShape(
        line_prefix=line_prefix,
        line_suffix="" if is_whole_lines else head[0],
        following=tuple(line.rstrip(BLANK) for line in head[0 if is_whole_lines else 1 :] if line.strip(BLANK)),
        is_whole_lines=is_whole_lines,
        line_quote=scan(near[: len(near) - len(line_prefix)], syntax).quote,
        quote=before.quote,
        closes_quote=after.quote_end is not None,
        num_closable=max(0, len(before.open_brackets) - len(closers)),
        next_closer=closers[0] if closers else "",
    )


def choose_mode(shape: GapShape, syntax: Syntax) -> str:
    """Return "line" where code stands right of the gap or the gap lies in a comment, else "block"."""
    if shape.is_whole_lines and shape.following:
        return "line"
    if shape.line_suffix.strip(BLANK + CLOSERS):
        return "line"
    return "line" if shape.quote and shape.quote == syntax.line_comment else "block"


@dataclass(frozen=True)
class _Cut:
    """A stop.

    Attributes:
        position: where the middle ends.
        reason: why; name: how `trimmed` calls what was cut.
        is_final: nothing before it is cut any more, because it has been shown.
    """

    position: int
    reason: str
    name: str
    is_final: bool = False


class MiddleTrimmer:
    """Follows a middle while it is written: says when to stop, and what can be shown already.

    Attributes:
        mode: "line" or "block", as chosen.
        text: the text so far; the final one after `finish`.
        stop_reason: why generation should stop, None as long as it should go on.
        trimmed: names of the cuts, in the order in which they were made.
    """

    def __init__(self, prefix: str, suffix: str, mode: str = "auto", path: str | None = None) -> None:
        """Look at the text around the gap.

        Args:
            prefix: text before the gap, lines ending with "\\n".
            suffix: text after the gap.
            mode: one of MODES.
            path: name of the file; its suffix tells the language.

        Raises:
            ValueError: the mode is unknown.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        self._syntax = syntax_of(path)
        self._shape = gap_shape(prefix, suffix, self._syntax)
        self.mode = choose_mode(self._shape, self._syntax) if mode == "auto" else mode
        self.text = ""
        self.stop_reason: str | None = None
        self.trimmed: tuple[str, ...] = ()
        self._num_shown = 0
        self._is_final = False
        self._scanner = Scanner(self._syntax, self._shape.quote)
        self._line_scanner = Scanner(self._syntax, self._shape.line_quote)

    def push(self, piece: str) -> str:
        """Take the next piece of generated text; return what can be shown for good.

        A piece that leads to a stop ends the text at the stop; pieces after it are ignored.
        """
        for character in piece:  # one by one, so that the pieces' borders change nothing
            if self.stop_reason is not None:
                break
            is_line_start = not self.text[self.text.rfind("\n") + 1 :].strip(BLANK)
            self.text += character
            # A stop can only fall on a line break, on a closing mark or on the first character of a line.
            if character in "\n)]}\"'`/" or (is_line_start and character not in " \t"):
                self._stop_here()
            elif len(self.text) % 16 == 0:
                self._stop_on_stutter()
        shown = self.text[self._num_shown : self._safe_length()]
        self._num_shown += len(shown)
        return shown

    def finish(self) -> str:
        """End the text: trim its tail and return what has not been shown yet."""
        if not self._is_final:
            self._cut(self._overlap_start(self.text), "suffix_overlap")
        self._trim_blank_tail()
        rest = self.text[self._num_shown :]
        self._num_shown = len(self.text)
        return rest

    def _stop_here(self) -> None:
        found = self._scan()
        rules = (self._suffix_stop, self._line_stop if self.mode == "line" else self._block_stop, self._repetition_stop)
        cuts = [cut for rule in rules if (cut := rule(found)) is not None]
        if cuts:
            first = min(cuts, key=lambda cut: cut.position)
            self.stop_reason, self._is_final = first.reason, first.is_final
            self._cut(first.position, first.name)

    def _cut(self, position: int, name: str) -> None:
        if self.text[position:].strip(BLANK):
            self.trimmed += (name,)
        self.text = self.text[:position]

    # Stops

    def _suffix_stop(self, found: Scan) -> _Cut | None:
        """The middle closes what the text after the gap closes, or repeats its next line."""
        shape = self._shape
        if shape.closes_quote and found.quote_end is not None:
            return _Cut(found.quote_end, "suffix", "suffix_overlap")
        for position, closer in found.unmatched[shape.num_closable :]:
            if closer == shape.next_closer:
                return _Cut(position, "suffix", "suffix_overlap")
        if self.text.endswith("\n"):
            start = self._overlap_start(self.text)
            lines = [line for line in self.text[start:].split("\n") if line.strip(BLANK)]
            if len(lines) > 1 or (lines and len(lines[0].strip(BLANK)) >= _TELLING_LINE_CHARS):
                return _Cut(start, "suffix", "suffix_overlap", is_final=True)
        return None

    def _line_stop(self, found: Scan) -> _Cut | None:
        """The first line break ends the middle; where the gap is at a line's end, the first one after some text."""
        if not self.text.endswith("\n"):
            return None
        shape = self._shape
        may_lead = not shape.line_suffix.strip(BLANK) and shape.quote != self._syntax.line_comment
        if may_lead and not self.text.strip(BLANK):
            return None
        return _Cut(len(self.text) - (not shape.is_whole_lines), "line", "line")

    def _block_stop(self, found: Scan) -> _Cut | None:
        """A line with less indentation than the gap's block ends the middle; at the top level, two blank lines do."""
        content = self.text.rstrip(BLANK)
        if not content:
            return None
        start = self.text.rfind("\n") + 1
        if start == 0 or start in found.inner_lines or self._is_within_line_of_gap(start):
            return None
        level = self._block_level()
        if level == 0 and _TWOBLANK_LINES.search(self.text, len(content)):
            return _Cut(len(content), "block", "block")
        line, end = self.text[start:], len(self.text[:start].rstrip(BLANK))
        if end and line.strip(BLANK) and indentation(line) < level:
            return _Cut(end, "block", "block")
        return None

    def _is_within_line_of_gap(self, start: int) -> bool:
        """Whether a line starts within brackets or strings that the gap's line opens left of the gap."""
        lead = self._shape.line_prefix
        return start + len(lead) in self._line_scanner.scan(lead + self.text).inner_lines

    def _block_level(self) -> int:
        """Return the indentation, in columns, below which a line lies outside of the gap's block."""
        shape = self._shape
        if shape.line_prefix.strip(BLANK):
            line, _, body = (shape.line_prefix + self.text).partition("\n")
            base = indentation(line)
            return max(base, first_indentation(body, base + 1)) if opens_block(line, self._syntax) else base
        level = first_indentation(shape.line_prefix + self.text, 0)
        outer = indentation(shape.following[0]) if shape.following else 0
        # On an indented empty line the user has chosen the level; on an unindented one the text after it may be outer.
        return min(level, outer) if outer and not shape.line_prefix else level

    def _repetition_stop(self, found: Scan) -> _Cut | None:
        """The same few lines over and over again."""
        if self.text.endswith("\n"):
            start, num_lines, period = self._repeated_tail()
            if num_lines >= (_MAX_COPIES - 1) * period > 0:
                return _Cut(start, "repetition", "repetition", is_final=True)
        return None

    def _stop_on_stutter(self) -> None:
        stutter = _STUTTER.search(self.text, max(0, len(self.text) - 300))
        if stutter and stutter[1].strip(" \t\n-=#*~_"):
            self.stop_reason = "repetition"

    # What may still be cut

    def _safe_length(self) -> int:
        """Return how much of the text no later stop and no trimming can take back."""
        shape, text = self._shape, self.text
        if self.stop_reason is not None:
            length = self._overlap_start(text)
        else:
            if shape.closes_quote and len(shape.quote) > 1:
                # What stands before the first characters of the closing mark is the tail once the mark is cut off.
                text = text.rstrip("*" if shape.quote == "/*" else shape.quote)
            length = min(self._overlap_start(text, is_whole=False), self._repeated_tail()[0])
        if self.mode == "block" or not shape.line_suffix.strip(BLANK):
            length = len(self.text[:length].rstrip(BLANK))
        return max(length, self._num_shown)

    def _repeated_tail(self) -> tuple[int, int, int]:
        """Return where the repeated lines at the end start, how many whole lines they are, and their period."""
        lines = self.text.rsplit("\n", _MAX_TAIL_LINES)
        best = (len(self.text), 0, 0)
        if not any(line.strip(BLANK) for line in lines[-1 - _MAX_PERIOD_LINES :]):
            return best
        for period in range(1, _MAX_PERIOD_LINES + 1):
            index = len(lines) - 1
            if index < period or not lines[index - period].startswith(lines[index]):
                continue
            while index > period and lines[index - 1] == lines[index - 1 - period]:
                index -= 1
            num_lines = len(lines) - 1 - index
            if not any(line.strip(BLANK) for line in lines[index:]):
                continue
            start = len(self.text) - len("\n".join(lines[index:]))
            if start < best[0]:
                best = (start, num_lines, period)
        return best

    def _overlap_start(self, text: str, is_whole: bool = True) -> int:
        """Return where the tail of a text starts that equals what follows the gap; its length if there is none.

        Args:
            text: the text so far, or a beginning of it.
            is_whole: the tail must repeat whole lines, or the whole rest of the gap's line; else a beginning of them
                that may still grow is enough.
        """
        shape = self._shape
        rest = shape.line_suffix.strip(BLANK)
        if rest:
            return self._rest_overlap_start(text, shape.line_suffix.rstrip(BLANK), is_whole)
        content = text.rstrip(BLANK)
        last = content[content.rfind("\n") + 1 :]
        first = 1  # the first line that is the answer's alone; the gap's own line is, too, if nothing stands left of it
        if not shape.line_prefix.strip(BLANK):
            first, last = 0, (last if "\n" in content else shape.line_prefix + last)
        # How many lines may be repeated: as many as there are up to one that the last line equals, or begins.
        fits = str.__eq__ if is_whole else str.startswith
        sizes = [size for size, line in enumerate(shape.following, 1) if fits(line, last)]
        if not sizes or not content:
            return len(text)
        lines = content.split("\n")
        lead = shape.line_prefix if first == 0 else ""
        lines[0] = lead + lines[0]
        filled = _last_filled(lines, first, sizes[-1])
        for size in reversed(sizes):
            if size < len(filled):
                start = max(0, sum(len(line) + 1 for line in lines[: filled[size] + 1]) - len(lead))
                whole = tuple(lines[index].rstrip(BLANK) for index in filled[size - 1 : 0 : -1])
                if whole == shape.following[: size - 1] and not (is_whole and self._closes_own(start)):
                    return start
        return len(text)

    def _rest_overlap_start(self, text: str, rest: str, is_whole: bool) -> int:
        bare = rest.lstrip(BLANK)
        if len(bare) < 2 and bare not in CLOSERS:
            return len(text)
        for tried in (text.rstrip(BLANK), text):
            for wanted in (rest, bare):
                sizes = [len(wanted)] if is_whole else range(min(len(wanted), len(tried)), 0, -1)
                for size in sizes:
                    if tried.endswith(wanted[:size]) and not (is_whole and self._closes_own(len(tried) - size)):
                        return len(tried) - size
        return len(text)

    def _closes_own(self, start: int) -> bool:
        """Whether the text from `start` on closes a bracket that the text before it opened, and so belongs to it."""
        alone = len(scan(self.text[start:], self._syntax).unmatched)
        return alone > sum(position >= start for position, _ in self._scan().unmatched)

    def _scan(self) -> Scan:
        if self.stop_reason is not None:  # the text may have been cut
            return scan(self.text, self._syntax, self._shape.quote)
        return self._scanner.scan(self.text)

    def _trim_blank_tail(self) -> None:
        shape = self._shape
        if shape.line_suffix.strip(BLANK):
            return
        content = self.text.rstrip(BLANK)
        if shape.is_whole_lines and content and "\n" in self.text[len(content) :]:
            content += "\n"
        if len(content) < len(self.text):
            self.trimmed += ("blank_tail",)
            self.text = content


def _last_filled(lines: list[str], first: int, size: int) -> list[int]:
    """Indices of the last `size` lines that are not blank, from the end on, and of the one before or `first` - 1."""
    filled = []
    for index in range(len(lines) - 1, first - 1, -1):
        if lines[index].strip(BLANK):
            filled.append(index)
            if len(filled) > size:
                return filled
    return [*filled, first - 1]


def _near_prefix(prefix: str) -> str:
    """The end of the prefix from the last line on that starts a top-level statement."""
    lines = prefix[-_CONTEXT_CHARS:].split("\n")[-_CONTEXT_LINES:]
    for index in range(len(lines) - 1, 0, -1):
        if lines[index][:1] not in ("", " ", "\t", ")", "]", "}", "#", '"', "'"):
            return "\n".join(lines[index:])
    return "\n".join(lines)


def _near_suffix(head: list[str]) -> str:
    """The beginning of the suffix up to the next line that starts a top-level statement."""
    for index in range(1, len(head)):
        if head[index][:1] not in ("", " ", "\t", ")", "]", "}", "#", '"', "'"):
            return "\n".join(head[:index])
    return "\n".join(head)
