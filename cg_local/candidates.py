"""Several answers to one prompt, computed side by side.

This file owns how they are drawn, merged and ranked. It builds no prompt and cuts no text. Invariant: each candidate is
the answer that its sampling parameters give alone, token for token; the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from cg_local.answers import AnswerStream, Infill
from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CapacityError
from cg_local.sequence import Sequence

CANDIDATE_TEMPERATURE = 0.8
"""Of the candidates beside the most probable one. Source: Chen et al., arXiv 2107.03374, section 3.3: the best one for
finding a right answer among many samples of code."""
SPARE_TOKENS = 32
"""K/V room of a further candidate beside its answer: two pages that it shares with others or fills in part."""

OpenStream = Callable[[Sequence], AnswerStream[Infill]]
Judge = Callable[[SequenceOf[str]], SequenceOf[int | None]]


def candidate_params(params: SamplingParams, num_candidates: int) -> list[SamplingParams]:
    """Return how to draw each candidate.

    The first one is drawn as asked. If that is greedy, the others are drawn at CANDIDATE_TEMPERATURE with fixed seeds,
    so that the same call gives the same candidates; else they have the seeds behind the given one.

    Args:
        params: as for one answer.
        num_candidates: from 1.
    """
    drawn = params
    if params.temperature == 0:
        drawn = replace(params, temperature=CANDIDATE_TEMPERATURE, seed=params.seed or 0)
    others = (None if drawn.seed is None else (drawn.seed + number) % 2**64 for number in range(1, num_candidates))
    return [params, *(replace(drawn, seed=seed) for seed in others)]


def rank(infills: SequenceOf[Infill], judge: Judge) -> list[Infill]:
    """Merge candidates with the same text and return them, the best first.

    Texts that add fewer syntax errors to the file come first, among these those with the higher mean
    log-probability; blank ones come last.

    Args:
        infills: the candidates.
        judge: counts the errors that each of some texts adds to the file's own; None: not known.
    """
    by_text: dict[str, list[Infill]] = {}
    for infill in infills:
        by_text.setdefault(infill.text, []).append(infill)
    merged = [
        replace(max(same, key=_mean_logprob), num_copies=len(same), num_parse_errors=errors)
        for same, errors in zip(by_text.values(), judge(list(by_text)), strict=True)
    ]
    return sorted(merged, key=lambda each: (not each.text.strip(), each.num_parse_errors or 0, -_mean_logprob(each)))


class Candidates:
    """Answers to one prompt, all of which go on in each step.

    `run` computes them; after it, after `close`, and after a KeyboardInterrupt and `close`, `results` are what there
    is. It must end, or be closed, before the model is asked the next question.
    """

    def __init__(
        self,
        engine: Engine,
        request: tuple[Collection[int], Collection[int]],
        params: SequenceOf[SamplingParams],
        open_stream: OpenStream,
        judge: Judge,
    ) -> None:
        """Take up the request.

        Args:
            engine: who computes; it should have K/V room for SPARE_TOKENS and the answer of each candidate.
            request: the prompt's token ids, and the tokens that end an answer.
            params: how to draw each candidate, from `candidate_params`.
            open_stream: makes the stream of a sequence, with a trimmer of its own.
            judge: see `rank`.

        Raises:
            PromptError, CapacityError: as `Engine.add`.
        """
        self._engine, (self._token_ids, self._stop_ids) = engine, request
        self._params, self._open, self._judge = params, open_stream, judge
        self._first = engine.add(self._token_ids, params[0], self._stop_ids)
        self._streams = [open_stream(self._first)]
        self._is_branched = False

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens of the prompt that are computed or were cached, and all of them."""
        return self._streams[0].prompt_progress

    @property
    def first(self) -> Infill:
        """The candidate that read the prompt, which the others found read; closes all."""
        self.close()
        return self._streams[0].result

    @property
    def results(self) -> list[Infill]:
        """All candidates, merged and ranked; closes those that have not ended."""
        self.close()
        return rank([stream.result for stream in self._streams], self._judge)

    def run(self) -> None:
        """Compute until all have ended.

        Raises:
            CapacityError: the K/V cache cannot even hold one of them.
        """
        while not all(stream.is_ended for stream in self._streams):
            self._step()
            if not self._is_branched and self._first.logprobs:
                self._is_branched = True
                for params in self._params[1:]:
                    self._streams.append(self._open(self._branch(params)))
            for stream in self._streams:
                stream.drain()

    def close(self) -> None:
        """End what has not ended and keep what there is."""
        for stream in self._streams:
            stream.close()

    def _step(self) -> None:
        try:
            self._engine.step()
        except CapacityError:
            # Fewer candidates are better than none.
            going_on = [stream for stream in self._streams if not stream.is_ended]
            if len(going_on) == 1:
                raise
            going_on[-1].close()
            self._streams.remove(going_on[-1])

    def _branch(self, params: SamplingParams) -> Sequence:
        if self._first.is_finished:  # by its first token; its pages are found by their tokens
            return self._engine.add(self._token_ids, params, self._stop_ids)
        return self._engine.fork_prompt(self._first, params)


def _mean_logprob(infill: Infill) -> float:
    return -float("inf") if infill.mean_logprob is None else infill.mean_logprob
