"""The choice of formats under a budget against every choice that there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cg_local.errors import QuantizeError
from cg_local.quant import allocation
from cg_local.quant.allocation import Choice, allocate

SIZES = {"c4g32": 43, "c4g16": 46, "i6g32": 63, "i8g64": 83}


def choices(errors, weight=1):
    return [Choice(format, size * weight, error) for (format, size), error in zip(SIZES.items(), errors, strict=True)]


def total(chosen, table):
    found = [next(c for c in table[name] if c.format == format) for name, format in chosen.items()]
    return sum(c.num_bytes for c in found), sum(c.divergence for c in found)


def best(table, budget):
    """The least divergence within the budget, by trying everything."""
    within = (found for found in product(*table.values()) if sum(c.num_bytes for c in found) <= budget)
    return min(sum(c.divergence for c in found) for found in within)


def random_table(seed):
    rng = np.random.default_rng(seed)
    return {
        name: choices(np.sort(rng.exponential(scale, 4))[::-1], int(rng.integers(1, 4)))
        for name, scale in zip("abcd", rng.exponential(1, 4), strict=True)
    }


def test_the_sensitive_matrix_gets_the_bits():
    table = {"a": choices([1.0, 0.8, 0.05, 0.003]), "b": choices([90.0, 72.0, 4.5, 0.27])}
    assert allocate(table, 128) == {"a": "c4g32", "b": "i8g64"}


def test_a_large_matrix_is_not_left_behind_by_small_ones():
    # For a byte the small ones gain more, but all that they could gain is less than the large one's step.
    table = {"large": choices([10.0, 9.0, 1.0, 0.5], 10), **{name: choices([0.6, 0.5, 0.1, 0.0]) for name in "abcd"}}
    assert allocate(table, 630 + 4 * 43)["large"] == "i6g32"


@given(st.integers(0, 10**6), st.integers(0, 400))
def test_result_is_the_best_that_keeps_the_budget(seed, spare):
    table = random_table(seed)
    budget = sum(found[0].num_bytes for found in table.values()) + spare
    num_bytes, divergence = total(allocate(table, budget), table)
    assert num_bytes <= budget
    assert divergence == pytest.approx(best(table, budget), rel=1e-12)


@given(st.integers(0, 10**6), st.integers(0, 400))
def test_coarse_units_keep_the_budget_and_lose_at_most_a_unit_a_matrix(seed, spare):
    table = random_table(seed)
    budget = sum(found[0].num_bytes for found in table.values()) + spare + 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "MAX_UNITS", budget // 5)
        num_bytes, divergence = total(allocate(table, budget), table)
    assert num_bytes <= budget
    assert divergence <= best(table, budget - 6 * (len(table) + 1)) + 1e-12


def test_budget_below_the_smallest_formats_is_refused():
    with pytest.raises(QuantizeError, match="43 bytes, 42 are allowed; ask for more bits"):
        allocate({"a": choices([4, 3, 2, 1])}, 42)
