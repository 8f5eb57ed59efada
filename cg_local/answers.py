"""Answers as they come and as they are at the end.

This file owns the results that `runtime` hands out and the stream that produces them. It chooses no token and decides
no stop. Invariant: the pieces of a stream joined together are the text of its result.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cg_local.errors import CgLocalError
from cg_local.generation import GenerationStats, TextStream
from cg_local.sampling import SampledToken


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: the answer, its lines ending with "\n".
        stop_reason: "separator", "eos", "max_tokens" or "interrupted"; for an infill also "line", "block", "suffix" or
            "repetition".
        num_tokens: tokens chosen for it, those of text that was cut again included.
        mean_logprob: mean natural logarithm of the probabilities of these tokens and of the stop token, if one ended
            the answer (`num_tokens` leaves it out); None when no token was chosen.
        prompt_tokens: of the prompt; cached_tokens: those of them that were already in the K/V cache.
        drafted_tokens: guessed tokens that were computed; accepted_tokens: those of them that were right.
        truncated: the prompt left something out to fit; `notice` says in one line what.
        omitted_turns: how many of a conversation's oldest turns were left out.
        token_ids: of the answer, as the model chose them; no stop token. Its text may have been cut.
        stop_id: the token that ended the answer, if one did.
        token_logprobs: natural logarithms of the probabilities of these tokens, the stop token's last.
        top_logprobs: beside each of them the most probable tokens, as many as `SamplingParams.top_logprobs` asks for.
        prefill_seconds: until the first token; decode_seconds: from there to the last.
        prefill_tokens_per_second, decode_tokens_per_second: None where there was too little to measure.
    """

    text: str
    stop_reason: str
    num_tokens: int
    mean_logprob: float | None
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    truncated: bool = False
    notice: str | None = None
    omitted_turns: int = 0
    token_ids: tuple[int, ...] = ()
    stop_id: int | None = None
    token_logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[SampledToken, ...], ...] = ()


@dataclass(frozen=True)
class Infill(Completion):
    """The text for a gap.

    Attributes:
        mode: "line" or "block", as used.
        trimmed: names of what was cut, in the order of the cuts; see `infill.postprocess`.
        untrimmed: the text as the model wrote it, up to where the generation stopped.
        num_copies: how many of the candidates had this text.
        num_parse_errors: syntax errors that this candidate adds to those of the file around the gap; None where its
            language is not known.
    """

    mode: str = "block"
    trimmed: tuple[str, ...] = ()
    untrimmed: str = ""
    num_copies: int = 1
    num_parse_errors: int | None = None


Result = TypeVar("Result", bound=Completion)


class Trimmer(Protocol):
    """Follows the text of an answer, ends it and cuts it (`infill.postprocess.MiddleTrimmer`)."""

    @property
    def text(self) -> str:
        """The text so far."""

    @property
    def stop_reason(self) -> str | None:
        """Why the text ends here; None as long as it goes on."""

    def push(self, piece: str) -> str:
        """Take the next piece; return what can be shown."""

    def finish(self) -> str:
        """End the text; return what has not been shown."""


class KeepAll:
    """The trimmer of answers that are shown as they are, but for line breaks: every one becomes "\\n"."""

    def __init__(self) -> None:
        """Start with no text."""
        self.text = ""
        self.stop_reason: str | None = None
        # A model may write other line breaks; whoever writes into a file gives them the file's ending.
        self._line_breaks = io.IncrementalNewlineDecoder(None, translate=True)

    def push(self, piece: str) -> str:
        """Keep and show the piece."""
        return self._keep(self._line_breaks.decode(piece))

    def finish(self) -> str:
        """Keep and show a line break that might have been one half of two."""
        return self._keep(self._line_breaks.decode("", final=True))

    def _keep(self, piece: str) -> str:
        self.text += piece
        return piece


class AnswerStream(Generic[Result]):
    """An answer that is computed while it is iterated over; yields pieces of text that stay.

    After the end, after `close`, and after a KeyboardInterrupt that hit a piece, `result` holds what there is.
    """

    def __init__(
        self, stream: TextStream, trimmer: Trimmer, end_ids: frozenset[int], finish: Callable[[Completion], Result]
    ) -> None:
        """Wrap a text stream.

        Args:
            stream: the generation.
            trimmer: follows its text.
            end_ids: the stop tokens that mean "eos"; every other one means "separator".
            finish: makes the result out of what every answer has; knows the prompt.
        """
        self._stream, self._trimmer, self._end_ids, self._finish = stream, trimmer, end_ids, finish
        self._result: Result | None = None

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens of the prompt that are computed or were cached, and all of them."""
        return self._stream.computed_prompt_tokens, self._stream.stats.prompt_tokens

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._trimmer.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the answer so far."""
        return self._stream.token_ids

    @property
    def result(self) -> Result:
        """The answer; closes the stream if it has not ended."""
        self.close()
        assert self._result is not None
        return self._result

    def __iter__(self) -> Iterator[str]:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Compute until there is text to show."""
        while self._result is None:
            if shown := self._advance():
                return shown
        raise StopIteration

    @property
    def is_ended(self) -> bool:
        """Whether the answer is complete."""
        return self._result is not None

    def drain(self) -> None:
        """Take what is computed already, and compute nothing; for answers that are computed side by side."""
        while self._result is None and not self._stream.is_waiting:
            self._advance()

    def _advance(self) -> str:
        """Take the next piece of the generation; return what can be shown now."""
        try:
            piece = next(self._stream)
        except StopIteration:
            return self._end(_stop_reason(self._stream.stats, self._end_ids))
        except KeyboardInterrupt:
            self._end("interrupted")
            raise
        shown = self._trimmer.push(piece.text)
        if self._trimmer.stop_reason is not None:
            self._stream.close()
            shown += self._end(self._trimmer.stop_reason)
        return shown

    def run(self) -> Result:
        """Compute the whole answer and return it."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop computing and keep what there is; no-op after the end."""
        if self._result is None:
            self._stream.close()
            self._end("interrupted")

    def _end(self, stop_reason: str) -> str:
        rest = self._trimmer.finish()
        self._result = self._finish(_completion(self._trimmer.text, stop_reason, self._stream))
        return rest


def _completion(text: str, stop_reason: str, stream: TextStream) -> Completion:
    stats = stream.stats
    return Completion(
        text=text,
        stop_reason=stop_reason,
        num_tokens=stats.completion_tokens,
        mean_logprob=stats.mean_logprob,
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        prefill_seconds=stats.prefill_seconds,
        decode_seconds=stats.decode_seconds,
        prefill_tokens_per_second=stats.prefill_tokens_per_second,
        decode_tokens_per_second=stats.decode_tokens_per_second,
        drafted_tokens=stats.speculation.drafted,
        accepted_tokens=stats.speculation.accepted,
        token_ids=stream.token_ids,
        stop_id=stats.stop_id,
        token_logprobs=tuple(stats.logprobs),
        top_logprobs=tuple(stats.top_logprobs),
    )


def _stop_reason(stats: GenerationStats, end_ids: frozenset[int]) -> str:
    """Name the end of a generation that nobody stopped from outside."""
    if stats.stop_id is not None:
        return "eos" if stats.stop_id in end_ids else "separator"
    # A full context is a bound on the tokens like any other; the numbers are in the prompt's notice.
    return "interrupted" if stats.stop_reason == "interrupted" else "max_tokens"


def read_together(
    starts: Sequence[Callable[[], AnswerStream[Result]]], limit: int
) -> Iterator[tuple[int, Result | CgLocalError]]:
    """Compute several answers as one batch of the engine, and give each when it has ended.

    Args:
        starts: begin one answer each; called when there is room for it.
        limit: answers under way at the same time.

    Yields:
        The number of an answer and its result, or the error that kept it from one: the others go on.
    """
    waiting = deque(enumerate(starts))
    running: deque[tuple[int, AnswerStream[Result]]] = deque()
    try:
        while waiting or running:
            if waiting and len(running) < limit:
                number, start = waiting.popleft()
                try:
                    running.append((number, start()))
                except CgLocalError as error:
                    yield number, error
                continue
            # Each in its turn: a step of the engine computes a token of all, and none runs far beyond its end.
            number, stream = running.popleft()
            try:
                ended = next(stream, None) is None
            except CgLocalError as error:
                stream.close()
                yield number, error
                continue
            if ended:
                yield number, stream.result
            else:
                running.append((number, stream))
    finally:
        for _, stream in running:
            stream.close()
