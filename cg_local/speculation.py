"""Guesses of the next tokens from the text itself, and how many of them are worth computing.

This file owns the drafts of prompt lookup and the judgement whether they pay. It computes no logits and chooses no
token: whether a guess was right is the engine's to find out. Invariant: nothing here changes which tokens an answer
has, only how many of them one step yields. Plain Python: an index of a few thousand tokens needs no arrays.

Method: Saxena, Prompt Lookup Decoding, 2023, github.com/apoorvumang/prompt-lookup-decoding. The longest match is found
as Deutsch's DEFLATE finds it (RFC 1951, section 4): through chains of the places where the same pair of tokens stands.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

# Guesses that one step verifies at most for a sequence. On 27 edits of files, most of them commits, where a further
# token costs a tenth of a step, 31 save another 10 % of the time and 7 save 18 % less.
MAX_DRAFT_TOKENS = 15
# On the same edits, of the first guesses after a match of one token 0.31 were right,
# of two 0.50; longer matches than 16 are right 199 times in 200 and not told apart.
MIN_MATCH, MAX_MATCH = 2, 16
# So many earlier places are compared, the nearest first; four times as many saved 1 % of the steps, a quarter of them
# cost 6 %.
MAX_PLACES = 64
# Share of right guesses after a match of 0, 1, ... MAX_MATCH tokens that a new sequence starts with. Edits of files do
# better from 2 on, text that repeats nothing does worse; after some 20 guesses the sequence's own share counts more.
FIRST_TRUST = (0.0, 0.0, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.8, 0.85, 0.85, 0.9, 0.9, 0.9, 0.9, 0.95)
# Weight of the newest guess in that share.
TRUST_STEP = 1 / 12
# What a step of so many tokens takes, one token being 1, while nothing is known of it: products with 4-bit weights on
# two AVX2 cores. Processors with dot products of their own take less, which the first trials show.
ASSUMED_COSTS = {1: 1.0, 2: 1.0, 3: 1.2, 4: 1.5, 5: 2.3, 8: 2.7, 16: 5.1}
# The first steps with a draft have at most so many tokens a sequence: a block of the matrix products.
FIRST_TOKENS = 4
# Times of steps with as many tokens that are remembered, and steps after which they are held to be out of date.
NUM_TIMES, MAX_AGE_STEPS = 5, 128


@dataclass
class SpeculationCounts:
    """How guesses did, of a sequence or of all.

    Attributes:
        drafted: guesses that were verified; accepted: those of them that became tokens.
        num_steps: steps that decoded, with or without a draft.
    """

    drafted: int = 0
    accepted: int = 0
    num_steps: int = 0

    def add(self, drafted: int, accepted: int, *, is_decode: bool) -> None:
        """Count a step."""
        self.drafted += drafted
        self.accepted += accepted
        self.num_steps += is_decode


class PromptLookup:
    """Drafts for one sequence: what followed where its last tokens stood before, in the prompt or in the answer."""

    def __init__(self) -> None:
        """Start with an empty index; it grows with the tokens shown to `propose`."""
        self._last_place: dict[tuple[int, int], int] = {}
        # Entry i: the place before i at which the same pair of tokens ends; -1: none.
        self._place_before: list[int] = []
        self._trust = list(FIRST_TRUST)
        self._draft: list[int] = []
        self._match = 0

    def propose(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Guess the tokens after the last one.

        Args:
            token_ids: all tokens so far; they may only grow from call to call.
            count: how many to guess at most.

        Returns:
            `count` guesses, or none where the last tokens stood nowhere before.
        """
        self._extend(token_ids)
        place, self._match = self._longest_match(token_ids)
        self._draft = []
        if self._match >= MIN_MATCH:
            # A place near the end runs into the draft itself, which then repeats what lies between.
            for source in range(place + 1, place + 1 + count):
                known = source < len(token_ids)
                self._draft.append(token_ids[source] if known else self._draft[source - len(token_ids)])
        return self._draft

    def expected_tokens(self) -> list[float]:
        """Return for 0, 1, ... guesses of the last draft how many tokens a step that verifies them should yield.

        A guess counts only if those before it were right, and then it follows a match that is longer by them.
        """
        expected, chance = [1.0], 1.0
        for number in range(len(self._draft)):
            chance *= self._trust[min(self._match + number, MAX_MATCH)]
            expected.append(expected[-1] + chance)
        return expected

    def learn(self, chosen: Sequence[int]) -> None:
        """Compare the last draft with the tokens that were chosen, whether or not it was verified with them."""
        for number, (guess, token_id) in enumerate(zip(self._draft, chosen, strict=False)):
            length = min(self._match + number, MAX_MATCH)
            self._trust[length] += TRUST_STEP * ((guess == token_id) - self._trust[length])
            if guess != token_id:
                break
        self._draft = []

    def _extend(self, token_ids: Sequence[int]) -> None:
        if not self._place_before:
            self._place_before.append(-1)
        for place in range(len(self._place_before), len(token_ids)):
            pair = token_ids[place - 1], token_ids[place]
            self._place_before.append(self._last_place.get(pair, -1))
            self._last_place[pair] = place

    def _longest_match(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Return where the longest run that equals the end of the tokens ended before, the nearest, and its length."""
        end = len(token_ids) - 1
        place, best_place, best_length = self._place_before[end], -1, 0
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            length = MIN_MATCH
            while length < MAX_MATCH and length <= place and token_ids[place - length] == token_ids[end - length]:
                length += 1
            if length > best_length:
                best_place, best_length = place, length
                if length == MAX_MATCH:
                    break
            place = self._place_before[place]
        return best_place, best_length


class StepCosts:
    """What a step takes by the number of its tokens, as measured in this process.

    The median of the last times is taken, so that a step beside a busy neighbour changes little; the first step of all
    is left out, because it may load or compile kernels.
    """

    def __init__(self) -> None:
        """Start with nothing measured."""
        self._times: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._seen_at: dict[int, int] = {}
        self._num_steps = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Remember the time of a step that decoded."""
        self._num_steps += 1
        if self._num_steps > 1:
            self._seen_at[num_tokens] = self._num_steps
            times = self._times.setdefault(num_tokens, deque(maxlen=NUM_TIMES))
            times.append(seconds)
            self._medians[num_tokens] = median_low(times)

    def is_known(self, num_tokens: int) -> bool:
        """Whether steps with so many tokens have been timed."""
        return num_tokens in self._medians

    def most_tokens(self, num_sequences: int) -> int:
        """Return how many tokens a step may have: twice as many as were tried, so that a trial cannot cost much."""
        return max(2 * max(self._medians, default=0), FIRST_TOKENS * num_sequences)

    def estimate(self, num_tokens: int, num_sequences: int) -> float:
        """Return the expected seconds of a step whose sequences have `num_tokens` tokens together, drafts included.

        A number that was not timed lies on the line through its neighbours that were. One that was not timed lately is
        taken to cost no more than was assumed at first, so that it is tried again where it promises something. The time
        without drafts must be known; it does not age, because it is taken anew whenever no draft pays.
        """
        assumed = self._medians[num_sequences] * assumed_cost(num_tokens) / assumed_cost(num_sequences)
        if num_tokens not in self._medians:
            return self._on_line(num_tokens, num_sequences) or assumed
        is_old = self._num_steps - self._seen_at[num_tokens] >= MAX_AGE_STEPS and num_tokens > num_sequences
        return min(self._medians[num_tokens], assumed) if is_old else self._medians[num_tokens]

    def _on_line(self, num_tokens: int, num_sequences: int) -> float | None:
        """Return the time by the nearest known numbers, one to each side or two below; None where one is missing."""
        below = sorted(known for known in self._medians if num_sequences <= known < num_tokens)
        above = [known for known in self._medians if known > num_tokens]
        ends = [below[-1], min(above)] if above else below[-2:]
        if len(ends) < 2:
            return None
        start, end = (self._medians[known] for known in ends)
        return start + max(end - start, 0.0) / (ends[1] - ends[0]) * (num_tokens - ends[0])


def assumed_cost(num_tokens: int) -> float:
    """Return what a step of so many tokens takes, one of one token being 1, on the lines through ASSUMED_COSTS."""
    known = sorted(ASSUMED_COSTS)
    at = min(bisect_left(known, num_tokens, 1), len(known) - 1)
    below, above = known[at - 1], known[at]
    slope = (ASSUMED_COSTS[above] - ASSUMED_COSTS[below]) / (above - below)
    return ASSUMED_COSTS[below] + slope * (num_tokens - below)


def best_draft_length(expected: Sequence[Sequence[float]], costs: StepCosts) -> int:
    """Return how many guesses of each draft to verify so that the step yields the most tokens a second.

    Args:
        expected: of each decoding sequence what `PromptLookup.expected_tokens` returns; [1.0] where it has no draft.
        costs: times of steps; where that of a step without drafts is missing, none is verified.
    """
    best_length, best_rate = 0, 0.0
    if not costs.is_known(len(expected)):
        return 0
    for length in range(max(map(len, expected))):
        num_tokens = sum(1 + min(length, len(yields) - 1) for yields in expected)
        if num_tokens > costs.most_tokens(len(expected)):
            break
        gained = sum(yields[min(length, len(yields) - 1)] for yields in expected)
        rate = gained / costs.estimate(num_tokens, len(expected))
        if rate > best_rate:
            best_length, best_rate = length, rate
    return best_length
