"""Many requests at once: answers and losses from whatever computes them, and the figures of an evaluation.

This file owns what is asked of a backend, the way of one over the engine, and what the figures mean. It reads and
writes no file. Invariant: a request's result depends on that request, its line and the settings, not on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cg_local.config import SamplingParams
from cg_local.errors import CapacityError
from cg_local.prompts import Prompt, complete_prompt, infill_prompt
from cg_local.request_file import Request
from cg_local.sampling import log_sum_exp
from cg_local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cg_local.runtime import LocalModel

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What a model wrote; attributes as in `answers.Completion`."""

    text: str
    stop_reason: str
    num_tokens: int
    prompt_tokens: int
    mean_logprob: float | None
    truncated: bool

    def document(self) -> dict[str, object]:
        """Return the members of a result."""
        logprob = None if self.mean_logprob is None else round(self.mean_logprob, 4)
        return {
            **{"text": self.text, "stop_reason": self.stop_reason, "num_tokens": self.num_tokens},
            **{"prompt_tokens": self.prompt_tokens, "mean_logprob": logprob, "truncated": self.truncated},
        }


class Backend(Protocol):
    """Computes answers and losses.

    Attributes:
        tokenizer: of the model.
        max_context: tokens of prompt and answer together.
        batch_size: requests that are computed at once; what is done is written down after as many.
        infill_order: of the prompts of gaps.
    """

    tokenizer: Tokenizer
    max_context: int
    batch_size: int
    infill_order: str

    def answer(self, requests: Sequence[Request], params: SamplingParams) -> list[Answer]:
        """Answer up to `batch_size` requests."""

    def losses(self, sequences: Sequence[Sequence[int]]) -> list[Doubles]:
        """Return the cross entropy in nats of each token but the first, of up to `batch_size` sequences."""


class EngineBackend:
    """The engine, one request after the other: on a processor a batch saves little, and a prefix may be cached.

    Args:
        model: loaded.
    """

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.tokenizer, self.max_context, self.batch_size = model.tokenizer, model.max_context, 1
        self.infill_order = model.infill_order

    def answer(self, requests: Sequence[Request], params: SamplingParams) -> list[Answer]:
        """See `Backend`."""
        return [self._answer(request, params_of(request, params)) for request in requests]

    def losses(self, sequences: Sequence[Sequence[int]]) -> list[Doubles]:
        """See `Backend`."""
        return [self._losses(sequence) for sequence in sequences]

    def _answer(self, request: Request, params: SamplingParams) -> Answer:
        assert request.prefix is not None
        if request.suffix is None:
            found = self._model.complete(request.prefix, params=params)
        else:
            found = self._model.infill(request.prefix, request.suffix, request.path, params=params)
        return Answer(
            text=found.text,
            stop_reason=found.stop_reason,
            num_tokens=found.num_tokens,
            prompt_tokens=found.prompt_tokens,
            mean_logprob=found.mean_logprob,
            truncated=found.truncated,
        )

    def _losses(self, token_ids: Sequence[int]) -> Doubles:
        logits = self._model.logits(token_ids)[:-1]
        return np.array(
            [log_sum_exp(row) - float(row[token_id]) for row, token_id in zip(logits, token_ids[1:], strict=True)]
        )


def params_of(request: Request, params: SamplingParams) -> SamplingParams:
    """Return the settings of one request: its own seed, which depends on its line and not on its batch."""
    return params if params.seed is None else replace(params, seed=(params.seed + request.line) % 2**64)


def request_prompt(backend: Backend, request: Request, max_tokens: int) -> Prompt:
    """Build the prompt of a request as `runtime.LocalModel` does, with room for an answer.

    Raises:
        PromptError, CapacityError: there is no room for a prompt.
    """
    assert request.prefix is not None
    room = backend.max_context - max_tokens
    if room < 1:
        raise CapacityError(
            f"line {request.line}: an answer of {max_tokens:,} tokens leaves no room in a context of "
            f"{backend.max_context:,}; ask for fewer tokens"
        )
    if request.suffix is None:
        return complete_prompt(backend.tokenizer, request.prefix, max_prompt_tokens=room)
    texts, order = (request.prefix, request.suffix), backend.infill_order
    return infill_prompt(backend.tokenizer, *texts, path=request.path, order=order, max_prompt_tokens=room)


def answer_all(
    backend: Backend, requests: Sequence[Request], params: SamplingParams
) -> Iterator[list[dict[str, object]]]:
    """Yield the results of the requests, a batch at a time and in their order."""
    for batch in _batches(requests, backend.batch_size):
        answers = backend.answer(batch, params)
        yield [request.label | answer.document() for request, answer in zip(batch, answers, strict=True)]


def evaluate_all(
    backend: Backend, requests: Sequence[Request], params: SamplingParams
) -> Iterator[list[dict[str, object]]]:
    """Yield the results of an evaluation, a batch at a time and in the order of the requests.

    A text has "nll", the mean cross entropy in nats of its "num_scored" tokens behind <bos>; a text beyond the context
    is cut into windows, each with a <bos>. A request with an expected answer has the same of that answer's tokens
    behind the prompt, its own answer, and whether the two are equal but for white space at their ends.
    """
    for batch in _batches(requests, backend.batch_size):
        asked = [request for request in batch if request.text is None]
        answers = iter(backend.answer(asked, params)) if asked else iter(())
        losses = _scores(backend, [_windows(backend, request) for request in batch])
        results = []
        for request, values in zip(batch, losses, strict=True):
            result = request.label | {"nll": _mean(values), "num_scored": len(values)}
            if request.text is None:
                answer = next(answers)
                expected = str(request.expected).replace("\r\n", "\n")  # as it is scored, and as models answer
                result |= answer.document() | {"is_match": answer.text.strip() == expected.strip()}
            results.append(result)
        yield results


def summary(results: Iterable[dict[str, object]]) -> dict[str, object]:
    """Return the figures of an evaluation.

    "mean_nll" is over all scored tokens, "perplexity" its exponential, "exact_match" the share of matching answers;
    None where nothing was scored, or nothing asked.
    """
    total, num_scored, matches = 0.0, 0, list[bool]()
    num_requests = 0
    for result in results:
        num_requests += 1
        count = int(str(result["num_scored"]))
        if count:
            total, num_scored = total + float(str(result["nll"])) * count, num_scored + count
        if "is_match" in result:
            matches.append(bool(result["is_match"]))
    mean = total / num_scored if num_scored else None
    return {
        **{"num_requests": num_requests, "num_scored": num_scored, "mean_nll": mean},
        # Beyond 700 nats a token the exponential is no float64.
        "perplexity": math.exp(mean) if mean is not None and mean < 700 else None,
        **{"num_answers": len(matches), "exact_match": sum(matches) / len(matches) if matches else None},
    }


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


@dataclass(frozen=True)
class _Window:
    """Token ids, of which the last `num_scored` count."""

    token_ids: list[int]
    num_scored: int


def _windows(backend: Backend, request: Request) -> list[_Window]:
    tokenizer, room = backend.tokenizer, backend.max_context - 1
    if request.text is None:
        expected = tokenizer.encode(str(request.expected).replace("\r\n", "\n"))
        # One token of room at least, so that an empty answer is judged like any other.
        prompt = request_prompt(backend, request, max(1, len(expected)))
        return [_Window([*prompt.token_ids, *expected], len(expected))]
    ids = tokenizer.encode(request.text)
    parts = [ids[start : start + room] for start in range(0, len(ids), room)]
    return [_Window([tokenizer.bos_id, *part], len(part)) for part in parts]


def _scores(backend: Backend, windows: Sequence[Sequence[_Window]]) -> list[Doubles]:
    """Return the losses of each request's scored tokens; windows of all requests share batches."""
    flat = [window for group in windows for window in group]
    losses: list[Doubles] = []
    for start in range(0, len(flat), backend.batch_size):
        part = flat[start : start + backend.batch_size]
        found = backend.losses([window.token_ids for window in part])
        losses += [values[len(values) - window.num_scored :] for window, values in zip(part, found, strict=True)]
    rest = iter(losses)
    return [np.concatenate([np.zeros(0), *(next(rest) for _ in group)]) for group in windows]


def _mean(values: Doubles) -> float | None:
    return float(values.mean()) if len(values) else None
