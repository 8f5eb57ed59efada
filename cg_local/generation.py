"""Token stream to text stream: stop ids, interruption, statistics.

This file owns the turning of chosen tokens into text as they come. It builds no prompt. Invariant: the texts of the
pieces joined together are the decoded answer; no piece ends within a character, and a stop token is in none.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field

from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CapacityError
from cg_local.sequence import Sequence
from cg_local.speculation import SpeculationCounts
from cg_local.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPiece:
    """Text that became complete, and the tokens chosen since the last piece.

    Attributes:
        text: may be empty while a character is incomplete.
        token_ids: the tokens, without a stop token.
        logprobs: natural logarithms of their probabilities.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class GenerationStats:
    """What an answer took; complete when the stream has ended.

    Attributes:
        prompt_tokens: tokens of the prompt; cached_tokens: those of them found in the prefix cache.
        completion_tokens: tokens of the answer, without a stop token.
        prefill_seconds: from the start to the first token; decode_seconds: from there to the last.
        stop_reason: "stop_id", "max_tokens", "context_full" or "interrupted".
        stop_id: the token that ended the answer, if one did.
        logprobs: of each chosen token, a stop token's included.
        speculation: guessed tokens that were computed, and those of them that were right.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_reason: str | None = None
    stop_id: int | None = None
    logprobs: list[float] = field(default_factory=list)
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)

    @property
    def mean_logprob(self) -> float | None:
        """Mean logarithm of the chosen tokens' probabilities, a stop token's included; None when none was chosen."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens computed (not cached) a second; None before the first token."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_seconds if self.prefill_seconds > 0 else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens a second after the first; None while there are none."""
        steps = len(self.logprobs) - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else None


class TextStream:
    """The pieces of one answer, computed as they are asked for.

    Iterate over it; `stats` is complete when the iteration has ended. Closing it (or a KeyboardInterrupt or a
    CapacityError while a piece is computed) cancels the sequence and keeps what was produced. Streams of one engine may
    be read in turns.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sequence: Sequence) -> None:
        self._engine, self._sequence = engine, sequence
        self._decoder = tokenizer.stream_decoder()
        self._text = ""
        self._first_token_at: float | None = None
        self._started_at = time.perf_counter()
        self._pieces = self._generate()
        # The counts are the sequence's own, so they are up to date without being copied.
        self.stats = GenerationStats(sequence.num_prompt_tokens, sequence.num_cached, speculation=sequence.speculation)

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of that text."""
        first = self._sequence.num_prompt_tokens
        return tuple(self._sequence.token_ids[first : first + self.stats.completion_tokens])

    @property
    def computed_prompt_tokens(self) -> int:
        """Tokens of the prompt whose K and V are there."""
        return min(self._sequence.num_computed, self._sequence.num_prompt_tokens)

    def __iter__(self) -> Iterator[TextPiece]:
        """Return the iterator over the pieces; there is one, however often this is called."""
        return self._pieces

    def __next__(self) -> TextPiece:
        """Compute the next piece."""
        return next(self._pieces)

    def close(self) -> None:
        """Cancel what is not yet computed; no-op after the end."""
        self._pieces.close()
        self._finish()

    def _generate(self) -> Generator[TextPiece, None, None]:
        try:
            while self.stats.stop_reason is None and not (self._sequence.is_finished and self._has_taken_all()):
                # A step may have computed several, and the steps that another stream asked for tokens of this one.
                if self._has_taken_all():
                    self._engine.step()
                else:
                    yield from self._take()
        except (KeyboardInterrupt, CapacityError):
            self._finish()
            raise
        tail = self._finish()
        if tail:
            yield TextPiece(tail, (), ())

    def _has_taken_all(self) -> bool:
        return len(self.stats.logprobs) == len(self._sequence.logprobs)

    def _take(self) -> Iterator[TextPiece]:
        """Take the next token of the sequence; no piece for a stop token."""
        now = time.perf_counter()
        if self._first_token_at is None:
            self._first_token_at = now
            self.stats.prefill_seconds = now - self._started_at
        self.stats.decode_seconds = now - self._first_token_at
        sequence, number = self._sequence, len(self.stats.logprobs)
        logprob = sequence.logprobs[number]
        self.stats.logprobs.append(logprob)
        if sequence.num_prompt_tokens + number == len(sequence.token_ids):
            return
        token_id = sequence.token_ids[sequence.num_prompt_tokens + number]
        self.stats.completion_tokens += 1
        text = self._decoder.push(token_id)
        self._text += text
        yield TextPiece(text, (token_id,), (logprob,))

    def _finish(self) -> str:
        """End the sequence if it runs, complete text and statistics; return what an incomplete character leaves."""
        self._engine.cancel(self._sequence)
        tail = self._decoder.flush()
        self._text += tail
        if self.stats.stop_reason is None:
            is_whole = self._has_taken_all() and self._sequence.stop_reason != "cancelled"
            self.stats.stop_reason = self._sequence.stop_reason if is_whole else "interrupted"
            self.stats.stop_id = self._sequence.stop_id if is_whole else None
        return tail


def stream_text(
    engine: Engine,
    tokenizer: Tokenizer,
    token_ids: Collection[int],
    params: SamplingParams | None = None,
    stop_ids: Collection[int] = (),
) -> TextStream:
    """Answer a prompt as a stream of text.

    Args:
        engine: who computes.
        tokenizer: turns tokens into text.
        token_ids: the prompt.
        params: how to sample and how many tokens at most; default greedy.
        stop_ids: tokens that end the answer, never shown.

    Raises:
        PromptError, CapacityError: as `Engine.add`.
    """
    return TextStream(engine, tokenizer, engine.add(token_ids, params, stop_ids))
