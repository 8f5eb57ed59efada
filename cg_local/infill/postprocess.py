"""Where the middle ends and what of it is kept.

This file owns the order of the rules: stops that are taken while text is being generated, and the trimming of what runs
into the text after the gap. It knows no tokens and no model. Invariant: what `push` has returned so far is a beginning
of the final text, whatever comes next, so a terminal never shows text that is taken back; and the result does not
depend on how the text was cut into pieces.

A stop names itself (`line`, `block`, `suffix`, `repetition`); a cut names itself in `trimmed`: `line_endings`,
`indentation`, `double_space`, `line`, `block`, `suffix_overlap`, `unmatched_closer`, `repetition` or `blank_tail`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cg_local.infill.blocks import BlockEnd
from cg_local.infill.gap import choose_mode, gap_shape
from cg_local.infill.indentation import IndentationStyle, seam
from cg_local.infill.overlap import LineOverlap, RepeatedLines, RestOverlap
from cg_local.infill.syntax import BLANK, syntax_of

MODES = ("auto", "line", "block")

# One line that equals the next line of the file ends the middle at once from this length on; shorter ones ("else:",
# "pass", "}") are often meant, and are cut only at the very end.
_TELLING_LINE_CHARS = 8
_STUTTER = re.compile(r"(.{1,12}?)\1{23}\Z", re.DOTALL)
_STUTTER_CHARS, _STUTTER_STEP = 300, 16


@dataclass(frozen=True)
class _Stop:
    """A stop.

    Attributes:
        position: where the middle ends.
        reason: why; name: how `trimmed` calls what was cut.
        is_final: nothing before it is cut any more.
    """

    position: int
    reason: str
    name: str
    is_final: bool = False


class MiddleTrimmer:
    """Follows a middle while it is written: says when to stop, and what can be shown already.

    Attributes:
        mode: "line" or "block", as chosen.
        raw: the text as it came, up to the piece with the stop.
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
        self._shape = shape = gap_shape(prefix, suffix, self._syntax)
        self.mode = choose_mode(shape) if mode == "auto" else mode
        self._is_automatic = mode == "auto" and shape.ends_comment
        self.stop_reason: str | None = None
        self.trimmed: tuple[str, ...] = ()
        self._raw: list[str] = []
        self._text: list[str] = []
        self._num_shown = self._num_filled = self._line_start = 0
        self._is_final = self._is_finished = self._is_inner = self._has_cut = False
        # Of each position: the brackets open behind it, and those of them that the file opened.
        self._depths: list[int] = []
        self._floors: list[int] = []
        self._line_floor = shape.line_floor
        self._scanner = shape.scanner
        self._style = IndentationStyle(prefix, suffix)
        self._lead: str | None = ""
        self._has_return = False
        self._quote_closed: int | None = None  # where a string was closed last, while none is open
        self._block = BlockEnd(shape, self._syntax)
        self._lines = LineOverlap(
            shape.following if not shape.line_suffix.strip(BLANK) else (), shape.line_prefix, self._repeats_own
        )
        self._rest = RestOverlap(shape.line_suffix)
        self._repeated = RepeatedLines()

    @property
    def text(self) -> str:
        """The text so far; the final one after `finish`."""
        return "".join(self._text)

    @property
    def raw(self) -> str:
        """The text as it came."""
        return "".join(self._raw)

    def push(self, piece: str) -> str:
        """Take the next piece of generated text; return what can be shown for good.

        A piece that leads to a stop ends the text at the stop; pieces after it are ignored.
        """
        if self.stop_reason is not None:
            return ""
        self._raw.append(piece)
        for character in piece:  # one by one, so that the pieces' borders change nothing
            self._take_raw(character)
            if self.stop_reason is not None:
                return ""
        return self._show(self._safe_length())

    def finish(self) -> str:
        """End the text: trim its tail and return what has not been shown yet."""
        if not self._is_finished:
            self._is_finished = True
            self._end_raw()
            self._cut_open_quote()
            if not self._is_final:
                self._cut_overlap()
            self._trim_blank_tail()
        return self._show(len(self._text))

    def _show(self, length: int) -> str:
        shown = "".join(self._text[self._num_shown : length])
        self._num_shown += len(shown)
        return shown

    # From raw characters to the file's blanks and line endings

    def _take_raw(self, character: str) -> None:
        if self._has_return:
            self._has_return = False
            self._name("line_endings")
            if character != "\n":
                self._take_styled("\n")
                if self.stop_reason is not None:
                    return
        if character == "\r":
            self._has_return = True
        else:
            self._take_styled(character)

    def _take_styled(self, character: str) -> None:
        if self._lead is not None:
            if character in " \t":
                self._lead += character
                return
            self._take_lead(character)
        if self.stop_reason is None:
            self._take(character)
        if character == "\n":
            self._lead = ""

    def _take_lead(self, character: str) -> None:
        """Take the blanks that a line starts with, now that its first other character is known."""
        lead, self._lead = self._lead or "", None
        if character != "\n" and lead:
            lead = self._restyled(lead)
        for blank in lead:
            self._take(blank)

    def _restyled(self, lead: str) -> str:
        if self._scanner.quote:
            return lead
        depth = self._shape.line_prefix.count("\t") if not self._shape.line_prefix.strip() else 0
        if not self._text:
            kept, name = seam(self._shape, self._syntax, lead, self._style.unit)
            self._name(name)
            if self._shape.line_prefix or not kept:
                return kept
            lead = kept
        else:
            above = self._shape.line_prefix if self._line_start <= self._first_break() else ""
            depth = len(above) - len(above.lstrip("\t")) + above.rstrip().endswith(("{", "(", ":", "["))
        styled = self._style.rewrite(lead, depth)
        self._name("indentation" if styled != lead else "")
        return styled

    def _first_break(self) -> int:
        return self._text.index("\n") + 1 if "\n" in self._text[: self._line_start] else 0

    def _end_raw(self) -> None:
        if self.stop_reason is None and self._has_return:
            self._take_raw("\n")
        if self.stop_reason is None and self._lead:
            for blank in self._lead:
                self._take(blank)

    def _name(self, name: str) -> None:
        if name and name not in self.trimmed:
            self.trimmed += (name,)

    # Stops

    def _take(self, character: str) -> None:
        if self.stop_reason is not None:
            return
        scanner, position = self._scanner, len(self._text)
        if self._is_automatic and not position and character == "\n":
            self.mode = "block"  # the text leaves the comment at whose end the gap lies
        before = self._text[-1] if self._text else self._shape.line_prefix[-1:]
        num_unmatched, had_end = scanner.num_unmatched, scanner.quote_end is not None
        scanner.feed(position, character, before)
        self._text.append(character)
        self._depths.append(len(scanner.brackets))
        self._floors.append(scanner.floor)
        self._line_floor = min(self._line_floor, len(scanner.brackets))
        if character not in BLANK:
            self._num_filled = position + 1
        stops = [self._repetition_stop(position, character)]
        self._lines.feed(position, character)
        self._rest.feed(position, character)
        if character == "\n":
            stops += [self._overlap_stop(), self._line_stop(position), self._rest_stop()]
        if self._shape.closes_quote:
            stops.append(self._quote_stop(position, character, had_end))
        if scanner.num_unmatched > num_unmatched:
            stops.append(self._closer_stop())
        if self.mode == "block":
            stops.append(self._block_stop(position, character))
        found = [stop for stop in stops if stop is not None]
        if found:
            self._stop(min(found, key=lambda stop: stop.position))
        if character == "\n":
            self._line_start = position + 1
            self._is_inner = bool(scanner.quote) or len(scanner.brackets) > self._line_floor

    def _stop(self, stop: _Stop) -> None:
        self.stop_reason, self._is_final = stop.reason, stop.is_final
        self._cut(stop.position, stop.name)
        self._cut_open_quote()

    def _cut_open_quote(self) -> None:
        """Where the text after the gap closes a string, the middle has to end within one."""
        if self._quote_closed is not None and self._quote_closed < len(self._text):
            self._cut(self._quote_closed, "suffix_overlap")

    def _quote_stop(self, position: int, character: str, had_end: bool) -> _Stop | None:
        """The middle closes the string that the text after the gap closes.

        Where more follows there on the line (`"]`), the middle may go on with another string (`a", "b`).
        """
        scanner, quote = self._scanner, self._shape.quote
        if scanner.quote_end is None:
            return None
        rest = self._shape.line_suffix.partition(quote)[2].strip(BLANK)
        if not had_end:
            self._quote_closed = scanner.quote_end
            is_last = len(quote) > 1 or not rest or rest[0] == ","
            return _Stop(scanner.quote_end, "suffix", "suffix_overlap") if is_last else None
        if scanner.quote:
            self._quote_closed = None
            return None
        if self._quote_closed is None:
            self._quote_closed = position
        elif character in ("\n", rest[0]):
            return _Stop(self._quote_closed, "suffix", "suffix_overlap")
        return None

    def _rest_stop(self) -> _Stop | None:
        """The middle ends its line with all that follows on the gap's line."""
        start, depth = self._rest.cut(), len(self._scanner.brackets)
        if start is None or depth > self._line_floor or self._scanner.quote or self._repeats_own(start):
            return None
        return _Stop(start, "suffix", "suffix_overlap", is_final=True)

    def _cut(self, position: int, name: str) -> None:
        if "".join(self._text[position:]).strip(BLANK):
            self._name(name)
            self._has_cut = True
        del self._text[position:]

    def _closer_stop(self) -> _Stop | None:
        """The middle closes what the text after the gap closes, or what nothing has opened."""
        assert self._scanner.unmatched is not None
        position, closer = self._scanner.unmatched
        if self._scanner.num_unmatched <= self._shape.num_closable:
            return None
        if closer != self._shape.next_closer:
            is_open = self._depths[position - 1] if position else len(self._shape.scanner.brackets)
            return None if is_open or self._shape.next_closer else _Stop(position, "block", "unmatched_closer")
        column, rest = self._shape.closer_column, self._shape.line_suffix
        wanted = rest[:column].strip(BLANK) if column is not None else ""
        near = "".join(self._text[max(0, position - len(rest)) : position]).rstrip(BLANK)
        repeated = len(wanted) if wanted and near.endswith(wanted) else 0
        start = position - (min(len(rest), position) - len(near)) - repeated if repeated else position
        return _Stop(start, "suffix", "suffix_overlap")

    def _overlap_stop(self) -> _Stop | None:
        """The middle repeats the next line of the file."""
        start = self._lines.cut()
        if start is None or self._num_filled <= start:
            return None
        last = self._lines.last_line.strip(BLANK)
        if self._lines.num_lines > 1 or len(last) >= _TELLING_LINE_CHARS or last.startswith("```"):
            return _Stop(start, "suffix", "suffix_overlap", is_final=True)
        return None

    def _line_stop(self, position: int) -> _Stop | None:
        """The first line break ends the middle; where the gap is at a line's end, the first one after some text."""
        if self.mode != "line":
            return None
        shape = self._shape
        if not shape.line_suffix.strip(BLANK) and not self._num_filled:
            return None
        return _Stop(position + shape.is_whole_lines, "line", "line")

    def _block_stop(self, position: int, character: str) -> _Stop | None:
        own = len(self._scanner.brackets) - self._line_floor
        end = self._block.feed(position, character, own, self._is_inner)
        return None if end is None else _Stop(end, "block", "block")

    def _repetition_stop(self, position: int, character: str) -> _Stop | None:
        start = self._repeated.feed(position, character)
        if start is not None:
            return _Stop(start, "repetition", "repetition", is_final=True)
        if position % _STUTTER_STEP == 0:
            tail = "".join(self._text[-_STUTTER_CHARS:])
            stutter = _STUTTER.search(tail)
            if stutter and stutter[1].strip(" \t\n-=#*~_"):
                return _Stop(position + 1, "repetition", "repetition")
        return None

    # What may still be cut

    def _safe_length(self) -> int:
        """Return how much of the text no later stop and no trimming can take back."""
        shape = self._shape
        is_ending = shape.closes_quote and self._text[-1:] == [shape.quote[:1]] and len(shape.quote) > 1
        if is_ending or (shape.closes_quote and self._text[-1:] == ["*"]) or self._block.is_undecided:
            return self._num_shown
        length = len(self._text)
        length = length if self._quote_closed is None else min(length, self._quote_closed)
        length = min(self._lines.pending(length), self._rest.pending(length), self._repeated.pending(length))
        while length > self._num_shown and self._text[length - 1] in BLANK:
            length -= 1
        return max(length, self._num_shown)

    def _closes_own(self, start: int) -> bool:
        """Whether the text from `start` on closes a bracket that the text before it opened, and so belongs to it."""
        if not 0 < start <= len(self._depths):
            return False
        depth = self._depths[start - 1]
        return depth > self._floors[start - 1] and min(self._depths[start:], default=depth) < depth

    def _repeats_own(self, start: int) -> bool:
        """`_closes_own`, unless the file closes a bracket that only the text can have opened."""
        return not self._shape.num_needed and self._closes_own(start)

    def _cut_overlap(self) -> None:
        """Cut the tail that repeats whole lines, or the whole rest of the gap's line."""
        lines = LineOverlap(
            self._shape.following if not self._shape.line_suffix.strip(BLANK) else (),
            self._shape.line_prefix,
            self._repeats_own,
        )
        rest = RestOverlap(self._shape.line_suffix)
        del self._depths[len(self._text) :]
        for position, character in enumerate(self._text):
            lines.feed(position, character)
            rest.feed(position, character)
        cut = lines.cut()
        if cut is None and (start := rest.cut()) is not None and not self._repeats_own(start):
            cut = start
        if cut is not None and cut < len(self._text):
            self._cut(cut, "suffix_overlap")

    def _trim_blank_tail(self) -> None:
        shape, length = self._shape, len(self._text)
        while length and self._text[length - 1] in BLANK:
            length -= 1
        if shape.line_suffix.strip(BLANK):
            if length and length < len(self._text) and shape.line_suffix[0] in " \t" and not shape.quote:
                self._name("double_space")
                del self._text[length:]
            return
        if shape.is_whole_lines and length and "\n" in self._text[length:]:
            self._text[length:] = ["\n", *self._text[length:]]
            length += 1
        if length < len(self._text):
            # Before what was cut, its own line break is no blank line.
            if not (self._has_cut and self._text[length:].count("\n") <= 1):
                self._name("blank_tail")
            del self._text[length:]
