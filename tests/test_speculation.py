"""Proves the drafts of prompt lookup against a search through all places, and the choice of their length by cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.speculation import (
    FIRST_TRUST,
    MAX_AGE_STEPS,
    MAX_MATCH,
    MAX_PLACES,
    MIN_MATCH,
    PromptLookup,
    StepCosts,
    assumed_cost,
    best_draft_length,
)


def longest_match(token_ids: list[int]) -> tuple[int, int]:
    """The nearest of the longest earlier runs that equal the end, by looking everywhere: where it ends, its length."""
    best = (-1, 0)
    for place in range(len(token_ids) - 1):
        length = 0
        while length < min(MAX_MATCH, place + 1) and token_ids[place - length] == token_ids[-1 - length]:
            length += 1
        if length >= max(MIN_MATCH, best[1]):
            best = place, length
    return best


def draft_after(token_ids: list[int], count: int) -> list[int]:
    place, length = longest_match(token_ids)
    text = list(token_ids)
    for number in range(count if length else 0):
        text.append(text[place + 1 + number])
    return text[len(token_ids) :]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=MAX_PLACES), st.integers(0, 20))
def test_draft_is_what_followed_the_longest_match(token_ids: list[int], count: int) -> None:
    assert PromptLookup().propose(token_ids, count) == draft_after(token_ids, count)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50), st.lists(st.integers(1, 9), max_size=9))
def test_draft_does_not_depend_on_when_the_tokens_came(token_ids: list[int], steps: list[int]) -> None:
    lookup, end = PromptLookup(), 0
    for step in steps:
        end = min(end + step, len(token_ids))
        lookup.propose(token_ids[:end], 3)

    assert lookup.propose(token_ids, 5) == PromptLookup().propose(token_ids, 5)


def test_draft_near_the_end_repeats_what_lies_between() -> None:
    assert PromptLookup().propose([9, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]


def test_single_token_and_unknown_pair_give_no_draft() -> None:
    assert PromptLookup().propose([1], 5) == []
    assert PromptLookup().propose([1, 2, 3], 5) == []


def test_expected_tokens_follow_the_trust_in_matches_that_grow() -> None:
    lookup = PromptLookup()
    lookup.propose([1, 2, 3, 4, 1, 2], 2)

    p2, p3 = FIRST_TRUST[2], FIRST_TRUST[3]
    assert lookup.expected_tokens() == pytest.approx([1, 1 + p2, 1 + p2 + p2 * p3])


def test_expected_tokens_without_a_draft_are_one() -> None:
    lookup = PromptLookup()
    lookup.propose([1, 2, 3], 2)

    assert lookup.expected_tokens() == [1]


def expected_after(outcomes: list[list[int]]) -> float:
    """What the second token of [1, 2, 3, 4, 1, 2]'s draft promises after drafts of it met these tokens."""
    lookup = PromptLookup()
    for chosen in outcomes:
        lookup.propose([1, 2, 3, 4, 1, 2], 2)
        lookup.learn(chosen)
    lookup.propose([1, 2, 3, 4, 1, 2], 2)
    return lookup.expected_tokens()[2]


def test_right_guesses_raise_the_expectation_and_wrong_ones_lower_it() -> None:
    assert expected_after([[3, 4, 5]] * 60) == pytest.approx(3, abs=0.05)
    assert expected_after([[7]] * 60) == pytest.approx(1, abs=0.05)


def test_guesses_that_were_not_verified_are_learned_from_too() -> None:
    assert expected_after([[3]] * 5) > expected_after([])


def test_tokens_behind_a_wrong_guess_teach_nothing() -> None:
    assert expected_after([[7, 4]] * 5) == expected_after([[7, 7]] * 5)


# How many guesses to verify


def costs_of(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for num_tokens, value in [(1, 60.0), *seconds.items()]:
        costs.observe(num_tokens, value)
    return costs


CERTAIN = [1.0, 2.0, 3.0, 4.0, 5.0]


def test_first_time_of_all_is_left_out() -> None:
    costs = StepCosts()
    costs.observe(1, 60.0)
    assert not costs.is_known(1)
    costs.observe(1, 0.1)

    assert costs.estimate(1, 1) == 0.1


def test_one_slow_step_changes_nothing() -> None:
    costs = costs_of({1: 0.1})
    for seconds in (0.1, 5.0):
        costs.observe(1, seconds)

    assert costs.estimate(1, 1) == 0.1


def test_nothing_is_verified_before_a_step_without_drafts_was_timed() -> None:
    assert best_draft_length([CERTAIN], StepCosts()) == 0


def test_untimed_number_lies_on_the_line_through_its_neighbours() -> None:
    costs = costs_of({1: 1.0, 3: 2.0, 9: 2.6})

    assert costs.estimate(2, 1) == pytest.approx(1.5)
    assert costs.estimate(6, 1) == pytest.approx(2.3)
    assert costs.estimate(19, 1) == pytest.approx(3.6)


def test_first_trial_assumes_the_costs_of_products() -> None:
    assert costs_of({1: 2.0}).estimate(3, 1) == pytest.approx(2 * 1.2)
    assert costs_of({4: 3.0}).estimate(8, 4) == pytest.approx(3 * 2.7 / 1.5)


@pytest.mark.parametrize(("num_tokens", "cost"), [(1, 1.0), (4, 1.5), (12, 3.9), (16, 5.1), (24, 7.5)])
def test_assumed_costs_lie_on_lines_through_the_measured_ones(num_tokens: int, cost: float) -> None:
    assert assumed_cost(num_tokens) == pytest.approx(cost)


def test_trials_grow_from_a_block_to_twice_what_was_tried() -> None:
    certain = [float(number) for number in range(1, 17)]
    costs, lengths = costs_of({1: 1.0}), []
    for _ in range(4):
        lengths.append(best_draft_length([certain], costs))
        costs.observe(1 + lengths[-1], 1.0 + 0.01 * lengths[-1])

    assert lengths == [3, 7, 15, 15]


@pytest.mark.parametrize(
    ("seconds", "length"),
    [
        ({1: 1.0, 4: 1.1}, 4),
        ({1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4}, 4),
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.1}, 0),
        ({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 3.0}, 3),
    ],
)
def test_length_has_the_most_tokens_a_second(seconds: dict[int, float], length: int) -> None:
    assert best_draft_length([CERTAIN], costs_of(seconds)) == length


def test_draft_that_is_hardly_ever_right_is_not_verified() -> None:
    assert best_draft_length([[1.0, 1.01, 1.01]], costs_of({1: 1.0, 2: 1.2, 3: 1.3})) == 0


def test_drafts_of_a_batch_are_judged_by_the_tokens_of_all() -> None:
    # A third of a token for a fifth of the time: that pays for one sequence, and not where four others wait for it.
    yields = [1.0, 1.3]

    assert best_draft_length([yields], costs_of({1: 1.0, 2: 1.2})) == 1
    assert best_draft_length([yields, [1.0], [1.0], [1.0], [1.0]], costs_of({5: 1.0, 6: 1.2})) == 0


def test_time_of_many_tokens_is_asked_for_again_after_a_while() -> None:
    costs = costs_of({1: 1.0, 5: 9.0, 4: 9.0, 3: 9.0, 2: 9.0})
    assert best_draft_length([CERTAIN], costs) == 0

    for _ in range(MAX_AGE_STEPS):
        costs.observe(1, 1.0)

    assert best_draft_length([CERTAIN], costs) == 3
    costs.observe(4, 9.0)
    assert costs.estimate(4, 1) == 9.0
