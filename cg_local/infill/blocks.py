"""Where the block that the gap lies in ends.

This file owns the rules of indentation, closing words, statement ends and paragraphs. It cuts nothing and knows no
suffix but its first lines. Invariant: a rule looks at the lines so far and the beginning of the current one, and never
takes back that a line belongs to the block.
"""

from __future__ import annotations

import re

from cg_local.infill.gap import GapShape
from cg_local.infill.syntax import BLANK, Syntax, indentation, lead_of
from cg_local.infill.trees import is_complete

# Heads whose block another one may follow ("else", "catch"): its closing bracket does not end the construct.
_MAY_GO_ON = re.compile(r"[}\s]*(if|else|try|do|catch|switch|elif|elsif|except)\b")
_WORD_CHARS = re.compile(r"[A-Za-z_]")
_FENCE = "```"


class BlockEnd:
    """Follows the lines of a middle."""

    def __init__(self, shape: GapShape, syntax: Syntax) -> None:
        """Start at the gap."""
        self._shape, self._syntax = shape, syntax
        self._is_first = True
        self._line: list[str] = [shape.line_prefix]
        self._body: list[str] = []  # the gap's line and all after it
        self._base = indentation(shape.line_prefix)
        self._level: int | None = None
        self._is_open = self._is_head = self._may_go_on = self._is_closing = False
        self._is_statement = False  # the gap's line had begun, and the text has gone on with it
        self._word: str | None = None  # the first word of a line that may or may not belong to the block
        self._content_end = 0  # behind the last character that is not blank
        self._end = 0  # where the text ends if the current line is outside
        self._num_blank_lines = 0
        self._has_closed_top = self._has_closed = False

    @property
    def is_undecided(self) -> bool:
        """Whether the current line may still turn out to be outside."""
        return self._word is not None

    def feed(self, position: int, character: str, num_brackets: int, is_inner: bool) -> int | None:
        """Take the next character; return where the middle ends, if it does.

        Args:
            position: of the character.
            character: one character.
            num_brackets: how many brackets that are open now were opened on the gap's line or after it.
            is_inner: the line started within a string, or within a bracket opened on the gap's line or after it.
        """
        if character == "\n":
            return self._end_line(position, num_brackets, is_inner)
        is_start = character not in BLANK and not "".join(self._line).strip(BLANK) if len(self._line) < 80 else False
        self._line.append(character)
        end = None
        if self._word is not None:
            end = self._read_word(character)
        elif is_start and not is_inner and not self._is_first:
            end = self._start_line(character)
        if character not in BLANK:
            self._content_end = position + 1
        return end

    # The start of a line

    def _start_line(self, character: str) -> int | None:
        column = indentation("".join(self._line))
        if self._level is None:
            self._level = self._level_of(column)
        end = self._end = self._content_end
        if self._syntax.is_prose:
            return end if character == "#" and end and not self._shape.is_in_fence else None
        if self._has_closed:
            self._word, self._has_closed = "", False
            return self._read_word(character)
        if self._level == 0:
            return end if self._ends_at_top(character) else None
        if column >= self._level or not end:
            return None
        if character in ")]}":
            self._is_closing = True
            return None
        if self._syntax.going_on is None and self._syntax.closing is None:
            return end
        self._word = ""
        return self._read_word(character)

    def _ends_at_top(self, character: str) -> bool:
        """Whether a line that is not indented ends what was begun at the top level of the file."""
        if self._has_closed_top and self._num_blank_lines:
            return True
        return self._is_statement and character not in ")]}" and indentation("".join(self._line)) == 0

    def _level_of(self, column: int) -> int:
        """The columns below which a line lies outside of the block, told by its first line after the gap's."""
        shape = self._shape
        if shape.line_prefix.strip(BLANK):
            return max(self._base, column)  # deeper: the body of a head, or the rest of a statement
        first = "".join(self._body[:1])
        level = indentation(first) if first.strip(BLANK) else column
        if self._is_open:
            level = max(level, column) if level == self._base and column > level else level
        outer = indentation(shape.following[0]) if shape.following else 0
        # On an indented empty line the user has chosen the level; on an unindented one the text after it may be outer.
        return min(level, outer) if outer and not shape.line_prefix else level

    def _read_word(self, character: str) -> int | None:
        assert self._word is not None
        is_part = bool(_WORD_CHARS.match(character)) or (not self._word and character == "<") or self._word == "<"
        if is_part:
            self._word += character
            if self._word != "</":
                return None
        word, self._word = self._word, None
        return None if self._belongs(word) else self._end

    def _belongs(self, word: str) -> bool:
        syntax, column = self._syntax, indentation("".join(self._line))
        if any(self._is_in_suffix(word, column, line) for line in self._shape.following[:1]):
            return False
        if syntax.closing is not None and syntax.closing.match(word):
            is_own = self._is_open and column == self._base
            self._is_closing = is_own or not self._suffix_closes(column)
            return self._is_closing
        goes_on = syntax.going_on is not None and syntax.going_on.match(word)
        return bool(goes_on) and self._is_open and column == self._base

    @staticmethod
    def _is_in_suffix(word: str, column: int, line: str) -> bool:
        return indentation(line) == column and line.lstrip(" \t").startswith(word)

    def _suffix_closes(self, column: int) -> bool:
        """Whether the text after the gap has the closing word of the block that a line at this column closes."""
        closing = self._syntax.closing
        for line in self._shape.following[:1]:
            if closing is not None and closing.match(line.lstrip(" \t")) and indentation(line) <= column:
                return True
        return False

    # The end of a line

    def _end_line(self, position: int, num_brackets: int, is_inner: bool) -> int | None:
        line = "".join(self._line)
        is_blank = not line.strip(BLANK)
        if self._word is not None:
            word, self._word = self._word, None
            if not self._belongs(word):
                return self._end
        self._body.append(line)
        if self._is_first:
            self._end_first_line(line, num_brackets)
        end = self._blank_end() if is_blank else self._filled_end(line, position, num_brackets, is_inner)
        self._is_first, self._line, self._is_closing = False, [], False
        return end

    def _end_first_line(self, line: str, num_brackets: int) -> None:
        syntax = self._syntax
        self._base = indentation(line)
        code = line.rstrip(BLANK)
        for mark in syntax.line_comments:
            code = code.split(mark)[0].rstrip(BLANK)
        self._is_open = (
            num_brackets > 0
            or (syntax.has_colon_blocks and code.endswith(":"))
            or (syntax.opener is not None and self._opens_words(line))
        )
        self._is_head = num_brackets > 0 and code.endswith("{")
        self._may_go_on = bool(_MAY_GO_ON.match(code))
        has_begun = bool(self._shape.line_prefix.strip(BLANK))
        self._is_statement = has_begun and len(code) > len(self._shape.line_prefix.rstrip(BLANK)) and not self._is_open

    def _opens_words(self, line: str) -> bool:
        opener = self._syntax.opener
        if opener is None or not opener.match(line):
            return self._syntax.going_on is not None and bool(self._syntax.going_on.match(line.strip(BLANK)))
        # A modifier ("x = 1 if y") and a construct on one line are whole already.
        return not is_complete(self._syntax.language, line.strip(BLANK) + "\n") or self._syntax.language == "html"

    def _blank_end(self) -> int | None:
        if not self._content_end:
            return None
        self._num_blank_lines += 1
        if self._has_closed:
            return self._content_end
        if self._syntax.is_prose and not self._shape.is_in_fence:
            is_heading = self._shape.line_prefix.startswith("#")
            return None if is_heading or not self._is_paragraph() else self._content_end
        is_top = (self._level if self._level is not None else self._base) == 0 and not self._is_open
        return self._content_end if is_top and self._num_blank_lines > 1 else None

    def _is_paragraph(self) -> bool:
        """Whether the text so far holds a line of words."""
        return any(line.strip(BLANK) for line in (self._body[0][len(self._shape.line_prefix) :], *self._body[1:]))

    def _filled_end(self, line: str, position: int, num_brackets: int, is_inner: bool) -> int | None:
        syntax, stripped = self._syntax, line.strip(BLANK)
        self._num_blank_lines = 0
        if syntax.statement_end and stripped.endswith(syntax.statement_end) and not num_brackets:
            return position
        if syntax.is_prose:
            return position if self._shape.is_in_fence and stripped.startswith(_FENCE) else None
        if self._is_closing and not num_brackets and self._is_construct_whole():
            return position
        if stripped[0] in ")]}" and not num_brackets and is_inner and self._is_head:
            if not self._may_go_on:
                return position
            self._has_closed = True
        words = syntax.closing is not None and syntax.closing.match(stripped)
        if lead_of(line) == "" and not num_brackets and (stripped[0] == "}" or words):
            self._has_closed_top = not syntax.has_colon_blocks
        return None

    def _is_construct_whole(self) -> bool:
        """Whether the closing word that was just read ends the construct that the gap's line opened."""
        if not self._is_open or self._syntax.closing is None or self._syntax.language == "html":
            return True
        code = "\n".join(line[min(len(lead_of(line)), self._base) :] for line in self._body)
        return is_complete(self._syntax.language, code + "\n") is not False
