"""Fill-in-the-middle, chat and plain prompts as token ids, cut to a budget.

Owns the prompt formats and what is kept when a text is too long. It does not read files, choose context files or clean
up answers (`infill`) and knows no engine. Invariant: a prompt starts with its only BOS, holds at most
`max_prompt_tokens` ids, and has control ids only where its format puts them, whatever the texts spell.

Each part of a prompt is encoded by itself: control ids are hard borders of tokenization, so joining ids is the same as
encoding the joined text. Line ends: callers that write an answer back convert CRLF themselves (`infill` does, and
restores it); here CRLF becomes a newline in every text, because a CR before each newline is foreign to the model.

Source: CodeGemma report (arXiv 2406.11409), figures 2 and 4; ai.google.dev/gemma/docs/codegemma/prompt-structure.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cg_local.errors import PromptError
from cg_local.tokenizer import Tokenizer

ORDERS = ("psm", "spm")
MIN_TEXT_TOKENS = 16
"""A prompt with less room than this for the text around the gap is refused; fewer tokens tell a model nothing."""

ROLES = {"system": "system", "user": "user", "assistant": "model", "model": "model"}
"""Role of a message to role of a turn."""

PREFIX_SHARE = 3 / 4
"""The prefix's part of a budget too small for both sides; llama.cpp's server splits its batch the same way."""

CONTEXT_SHARE = 1 / 4
"""The part of a prompt that other files keep beside a text too long for it."""

STEADY_SHARE = 1 / 8
"""The part of a prefix too long for its budget that may be given up so that its cut stays where it is."""

CHARACTERS_PER_TOKEN = 4
"""First guess of how much text fills a budget; code has 3 to 4."""


@dataclass(frozen=True)
class PromptPart:
    """What a prompt keeps of one text.

    Attributes:
        name: "prefix", "suffix", "text", or the path of a context file (which counts with its path line).
        num_tokens: ids kept.
        total_tokens: ids of the whole text; estimated from its length if something was cut.
        num_lines: lines kept; a line that alone exceeds the budget may be kept in part.
        total_lines: lines of the whole text.
    """

    name: str
    num_tokens: int
    total_tokens: int
    num_lines: int
    total_lines: int

    @property
    def is_cut(self) -> bool:
        """Whether a part of the text was left out."""
        return self.num_tokens < self.total_tokens


@dataclass(frozen=True)
class Prompt:
    """A prompt that is ready for the engine.

    Attributes:
        token_ids: BOS first.
        truncated: something was left out to fit the budget.
        notice: one line that says what was left out, with the numbers; None if nothing was.
        parts: what is kept of each text in the order of the arguments, context files first; empty for chat.
        omitted_turns: how many of a chat's oldest turns are left out.
    """

    token_ids: list[int]
    truncated: bool = False
    notice: str | None = None
    parts: tuple[PromptPart, ...] = ()
    omitted_turns: int = 0


def infill_prompt(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    path: str | None = None,
    order: str = "psm",
    context: Sequence[tuple[str, str]] = (),
    context_share: float = CONTEXT_SHARE,
    max_prompt_tokens: int,
) -> Prompt:
    """Build the prompt that asks for the text between `prefix` and `suffix`.

    PSM: BOS, path line, <|fim_prefix|>, prefix, <|fim_suffix|>, suffix, <|fim_middle|>. Context files stand between BOS
    and the path line, each as path line, text, <|file_separator|>; the report shows this order of files in training,
    but not the form of a file without a gap. SPM, the suffix with its sentinel before the prefix with its own, is
    experimental: the report says that the model knows it, and its exact form is not published.

    What does not fit is left out in this order: context files from the first (farthest) on, down to their share, then
    the lines farthest from the gap, then the path line. A line is cut inside only if it alone exceeds the budget. The
    kept prefix begins with the same line while the gap moves on a little, so that its K and V can be used again.

    Args:
        tokenizer: the model's tokenizer.
        prefix: text before the gap.
        suffix: text behind the gap.
        path: the file's path as the model should see it: relative to the repository, with slashes. None: no path line.
        order: "psm" or "spm".
        context: (path, text) of other files, the nearest last.
        context_share: of the prompt, kept for these files where the text is too long; else they take what it leaves.
        max_prompt_tokens: most ids the prompt may have.

    Raises:
        PromptError: unknown order, or no room for MIN_TEXT_TOKENS ids of text.
    """
    if order not in ORDERS:
        raise PromptError(f"infill order {order!r} is unknown; use one of: {', '.join(ORDERS)}")
    prefix, suffix = _unix_lines(prefix), _unix_lines(suffix)
    room = max_prompt_tokens - 4  # BOS and three FIM ids
    before, after = _encode_end(tokenizer, prefix, room), _encode_start(tokenizer, suffix, room)
    needed = _check_room(room, len(before) + len(after), num_control=4)
    path_ids, omitted = tokenizer.encode(_path_line(path)), list[str]()
    if room - len(path_ids) < needed:
        omitted.append(f"path line of {len(path_ids):,} tokens")
        path_ids = []
    room -= len(path_ids)
    free = max(int(room * context_share), room - len(before) - len(after))
    files, file_ids = _nearest_files(tokenizer, context, min(free, room - needed))
    room -= len(file_ids)
    kept_before = _cut_steadily(tokenizer, before, max(int(room * PREFIX_SHARE), room - len(after)))
    kept_after = _cut_to_start(tokenizer, after, room - len(kept_before))
    if len(files) < len(context):
        omitted.append(f"{len(context) - len(files)} of {len(context)} context files")
    sides = (_part(tokenizer, "prefix", prefix, kept_before), _part(tokenizer, "suffix", suffix, kept_after))
    first, second = [tokenizer.fim_prefix_id, *kept_before], [tokenizer.fim_suffix_id, *kept_after]
    body = [*first, *second] if order == "psm" else [*second, *first]
    token_ids = [tokenizer.bos_id, *file_ids, *path_ids, *body, tokenizer.fim_middle_id]
    return _prompt(token_ids, (*files, *sides), omitted, max_prompt_tokens)


def complete_prompt(tokenizer: Tokenizer, text: str, *, max_prompt_tokens: int) -> Prompt:
    """Build the prompt that asks for the continuation of a text: BOS and the text, whose last lines are kept.

    Args:
        tokenizer: the model's tokenizer.
        text: the text to continue; may be "".
        max_prompt_tokens: most ids the prompt may have.

    Raises:
        PromptError: no room for MIN_TEXT_TOKENS ids of text.
    """
    text, room = _unix_lines(text), max_prompt_tokens - 1
    token_ids = _encode_end(tokenizer, text, room)
    _check_room(room, len(token_ids), num_control=1)
    kept = _cut_to_end(tokenizer, token_ids, room)
    return _prompt([tokenizer.bos_id, *kept], (_part(tokenizer, "text", text, kept),), [], max_prompt_tokens)


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    max_prompt_tokens: int,
    keep_share: float = 1.0,
    answer_ids: Mapping[str, Sequence[int]] | None = None,
) -> Prompt:
    """Build the prompt that asks for the answer to the last message of a conversation.

    Each turn is <start_of_turn>, role and newline, the text without surrounding white space, <end_of_turn>, newline; at
    the end stands the opening of the model's turn. The model knows no system role: a system text becomes part of the
    user's turn. Neighbouring messages of one turn are joined with an empty line between.

    If the conversation is too long, its oldest turns go, question and answer together; a leading system text stays.
    Which ones go follows from the messages alone, as if each question had been asked in its turn.

    Args:
        tokenizer: the model's tokenizer.
        messages: mappings with "role" ("system", "user", "assistant" or "model") and "content", oldest first; the first
            turn and the last must be the user's.
        max_prompt_tokens: most ids the prompt may have.
        keep_share: when turns must go, so many go that at most this share of the budget is left. Below 1 the next
            questions find the same start of the prompt, and with it its K and V in the prefix cache.
        answer_ids: by the text of an answer, the ids as the model chose them, whose K and V are there.

    Raises:
        PromptError: a message without role or content, an unknown role, a conversation that does not start and end with
            a question, or a last question that does not fit.

    Source: chat template of google/codegemma-7b-it; ai.google.dev/gemma/docs/core/prompt-structure (system text).
    """
    (system, turns), known = _turns(messages), answer_ids or {}
    opening = [tokenizer.start_of_turn_id, *tokenizer.encode("model\n")]
    encoded = [_turn_ids(tokenizer, role, text, known.get(text) if role == "model" else None) for role, text in turns]

    def ids_of(first: int, last: int) -> list[int]:
        question = _turn_ids(tokenizer, "user", _join(system, turns[first][1]))
        return [tokenizer.bos_id, *question, *(i for turn in encoded[first + 1 : last + 1] for i in turn), *opening]

    first, token_ids = 0, ids_of(0, 0)
    for last in range(0, len(turns), 2):
        token_ids = ids_of(first, last)
        limit = float(max_prompt_tokens)
        while len(token_ids) > limit and first < last:
            first, limit = first + 2, keep_share * max_prompt_tokens
            token_ids = ids_of(first, last)
    if len(token_ids) > max_prompt_tokens:
        raise PromptError(
            f"chat: the last question needs {len(token_ids):,} tokens and {max_prompt_tokens:,} are allowed; "
            "shorten it, leave files out of it, or allow a longer prompt"
        )
    if not first:
        return Prompt(token_ids)
    sizes = [len(turn) for turn in encoded]
    notice = f"the oldest {first} of {len(turns)} turns ({sum(sizes[:first]):,} of {sum(sizes):,} tokens)"
    return replace(_prompt(token_ids, (), [notice], max_prompt_tokens), omitted_turns=first)


def _turns(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Return the leading system text and the (role, text) turns, which alternate, first and last the user's."""
    system, turns = "", list[tuple[str, str]]()
    for number, message in enumerate(messages, start=1):
        role, text = _role_and_text(message, number)
        if role == "system" and not turns:
            system = _join(system, text)
            continue
        role = "model" if role == "model" else "user"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, _join(turns[-1][1], text))
        else:
            turns.append((role, text))
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        found = " to ".join([turns[0][0], turns[-1][0]]) if turns else "none"
        raise PromptError(f"chat: turns must go from user to user, found {found}; end with the question to answer")
    if not turns[-1][1]:
        raise PromptError("chat: the last question is empty; write what to ask")
    return system, turns


def _role_and_text(message: Mapping[str, str], number: int) -> tuple[str, str]:
    """Return the role as the model knows it (or "system") and the trimmed content of one message."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"chat: message {number} has the role {role!r}; use one of: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise PromptError(f"chat: message {number} has {type(content).__name__} as content; give text")
    return ROLES[role], _unix_lines(content).strip()


def _join(*texts: str) -> str:
    """Join the texts that are not empty, an empty line between."""
    return "\n\n".join(text for text in texts if text)


def _turn_ids(tokenizer: Tokenizer, role: str, text: str, text_ids: Sequence[int] | None = None) -> list[int]:
    """Return one finished turn; `text_ids` stand for the text where they are given."""
    ends = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    # A newline is a piece of its own and no text starts with one, so this border is one of tokenization too.
    content = tokenizer.encode(f"{role}\n{text}") if text_ids is None else [*tokenizer.encode(f"{role}\n"), *text_ids]
    return [ends[0], *content, ends[1], *tokenizer.encode("\n")]


def _unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _path_line(path: str | None) -> str:
    """Return a path as a line of its own ("" for none); characters that could break the line become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in path) + "\n" if path else ""


def _encode_end(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """Encode the end of a text: all of it if that is at most `limit` ids, else more than `limit` ids.

    A file of 100,000 lines would take seconds. The first line of an excerpt may have other ids than in the whole text;
    `_cut_to_end` drops it unless that line alone exceeds the budget.
    """
    num_characters = CHARACTERS_PER_TOKEN * max(limit, MIN_TEXT_TOKENS)
    while num_characters < len(text):
        token_ids = tokenizer.encode(text[-num_characters:])
        if len(token_ids) > limit:
            return token_ids
        num_characters *= 2
    return tokenizer.encode(text)


def _encode_start(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """Encode the start of a text, as `_encode_end` its end."""
    num_characters = CHARACTERS_PER_TOKEN * max(limit, MIN_TEXT_TOKENS)
    while num_characters < len(text):
        token_ids = tokenizer.encode(text[:num_characters])
        if len(token_ids) > limit:
            return token_ids
        num_characters *= 2
    return tokenizer.encode(text)


def _cut_to_end(tokenizer: Tokenizer, token_ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` of the last ids: whole lines, or the end of a line that is alone too long.

    Newlines are pieces of their own, so ids from behind a newline on are the encoding of the text from there on.
    """
    if (start := max(len(token_ids) - limit, 0)) == 0:
        return token_ids
    for border in range(start, len(token_ids)):
        if tokenizer.token_bytes(token_ids[border - 1]).endswith(b"\n"):
            return token_ids[border:]
    while start < len(token_ids) and _is_inside_character(tokenizer, token_ids[start]):
        start += 1
    return token_ids[start:]


def _cut_steadily(tokenizer: Tokenizer, token_ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` of the last ids, from a line on that calls with a little more text choose too.

    Of the first lines that `_cut_to_end` keeps, the least by its own text alone: not indented, smallest checksum.
    """
    kept = _cut_to_end(tokenizer, token_ids, limit)
    num_spare = int(limit * STEADY_SHARE) if len(kept) < len(token_ids) else 0
    lines, start, line = list[tuple[bool, int, int]](), 0, b""
    for place, token_id in enumerate(kept[:num_spare], 1):
        line += tokenizer.token_bytes(token_id)
        if line.endswith(b"\n"):
            lines.append((line[:1] in b" \t\n", zlib.crc32(line), start))
            start, line = place, b""
    return kept[min(lines)[2] :] if lines else kept


def _cut_to_start(tokenizer: Tokenizer, token_ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` of the first ids: whole lines, or the start of a line that is alone too long."""
    if len(token_ids) <= limit:
        return token_ids
    for border in range(limit, 0, -1):
        if tokenizer.token_bytes(token_ids[border - 1]).endswith(b"\n"):
            return token_ids[:border]
    while limit > 0 and _is_inside_character(tokenizer, token_ids[limit]):
        limit -= 1
    return token_ids[:limit]


def _is_inside_character(tokenizer: Tokenizer, token_id: int) -> bool:
    """Whether an id starts with a continuation byte of UTF-8, so that a cut before it would split a character."""
    return 0x80 <= (tokenizer.token_bytes(token_id) or b"\0")[0] < 0xC0


def _nearest_files(
    tokenizer: Tokenizer, context: Sequence[tuple[str, str]], room: int
) -> tuple[list[PromptPart], list[int]]:
    """Return what fits of the context files, whole files only, the last ones first; parts and ids in prompt order."""
    parts, token_ids = list[PromptPart](), list[int]()
    for path, text in reversed(context):
        file = _path_line(path) + _unix_lines(text)  # encoded as one: no control id stands between path and text
        file_ids = _encode_start(tokenizer, file, room - 1)
        if len(file_ids) >= room:
            break
        room -= len(file_ids) + 1
        token_ids = [*file_ids, tokenizer.file_separator_id, *token_ids]
        parts.insert(0, _part(tokenizer, path, file, file_ids))
    return parts, token_ids


def _part(tokenizer: Tokenizer, name: str, text: str, kept: list[int]) -> PromptPart:
    """Count what was kept of a text."""
    kept_text, total_tokens = tokenizer.decode(kept), len(kept)
    if len(kept_text) < len(text):
        per_character = len(kept) / len(kept_text) if kept_text else 1 / CHARACTERS_PER_TOKEN
        total_tokens = max(len(kept) + 1, round(per_character * len(text)))
    return PromptPart(name, len(kept), total_tokens, _num_lines(kept_text), _num_lines(text))


def _num_lines(text: str) -> int:
    return text.count("\n") + (text != "" and not text.endswith("\n"))


def _check_room(room: int, num_text_tokens: int, *, num_control: int) -> int:
    """Return how many ids of text a prompt must hold; raise PromptError if `room` is less."""
    needed = min(MIN_TEXT_TOKENS, num_text_tokens)
    if room < needed:
        raise PromptError(
            f"prompt: {room + num_control} tokens are allowed, and {num_control} control tokens and {needed} tokens of "
            f"text make {needed + num_control}; allow a longer prompt"
        )
    return needed


def _prompt(token_ids: list[int], parts: tuple[PromptPart, ...], omitted: list[str], max_prompt_tokens: int) -> Prompt:
    """Return the prompt with a notice that says what is cut and what is left out."""
    said = [
        f"{part.name} keeps {part.num_tokens:,} of about {part.total_tokens:,} tokens, {part.num_lines:,} of "
        f"{part.total_lines:,} lines"
        for part in parts
        if part.is_cut
    ]
    said += [f"left out: {', '.join(omitted)}"] if omitted else []
    notice = f"prompt cut to {max_prompt_tokens:,} tokens: {'; '.join(said)}" if said else None
    return Prompt(token_ids, truncated=bool(said), notice=notice, parts=parts)
