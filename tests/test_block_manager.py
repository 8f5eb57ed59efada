"""Proves the bookkeeping of pages: behaviour by behaviour, and in random histories against the pages' contents."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cg_local.block_manager import BlockManager, PageCopy
from cg_local.errors import CapacityError


def filled(manager: BlockManager, token_ids: list[int]) -> list[int]:
    """A block table whose tokens all have K and V, registered for others to find."""
    table: list[int] = []
    manager.extend(table, len(token_ids))
    manager.register_full_pages(table, token_ids, len(token_ids))
    return table


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_extend_adds_exactly_the_pages_that_the_tokens_need(num_tokens: int, num_pages: int) -> None:
    manager, table = BlockManager(8, 4), []

    manager.extend(table, num_tokens)

    assert len(set(table)) == num_pages
    assert manager.num_free_pages == 8 - num_pages


def test_extend_keeps_the_pages_that_are_there() -> None:
    manager = BlockManager(8, 4)
    table = filled(manager, [1, 2, 3])
    before = list(table)

    manager.extend(table, 4)
    assert table == before
    manager.extend(table, 9)
    assert table[:1] == before


def test_extend_beyond_the_free_pages_names_the_numbers() -> None:
    manager, table = BlockManager(3, 4), []
    manager.extend(table, 8)

    with pytest.raises(CapacityError, match=r"20 tokens needs 3 more page\(s\) of 4 tokens, 1 of 3 free"):
        manager.extend(table, 20)


def test_extend_beyond_the_free_pages_changes_nothing() -> None:
    manager, table = BlockManager(3, 4), []
    manager.extend(table, 8)
    before = list(table)

    with pytest.raises(CapacityError):
        manager.extend(table, 20)

    assert table == before
    assert manager.num_free_pages == 1


def test_release_empties_the_table_and_frees_its_pages() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 12)

    manager.release(table)

    assert table == []
    assert manager.num_free_pages == 4


def test_shared_page_is_freed_only_at_its_last_release() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 12)
    twin = manager.fork(table)

    manager.release(table)
    assert manager.num_free_pages == 1
    manager.release(twin)
    assert manager.num_free_pages == 4


def test_fork_holds_the_same_pages_in_a_table_of_its_own() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 6)

    twin = manager.fork(table)

    assert twin == table
    assert twin is not table


def test_page_of_one_table_is_writable_without_a_copy() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 6)

    assert manager.make_writable(table, 5) is None


def test_shared_page_is_copied_before_it_is_written() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 6)
    twin = manager.fork(table)

    copy = manager.make_writable(twin, 5)

    assert copy == PageCopy(source=table[1], destination=twin[1])
    assert twin[0] == table[0]
    assert twin[1] != table[1]


def test_last_holder_of_a_page_writes_it_without_a_copy() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1] * 6)
    twin = manager.fork(table)
    manager.make_writable(twin, 5)

    assert manager.make_writable(table, 5) is None


def test_copy_without_a_free_page_is_refused_and_changes_nothing() -> None:
    manager = BlockManager(2, 4)
    table = filled(manager, [1] * 6)
    twin = manager.fork(table)

    with pytest.raises(CapacityError, match=r"shared page takes 1 more page.* 0 of 2 free"):
        manager.make_writable(twin, 5)

    assert twin == table


def test_full_pages_of_a_prefix_are_found_again() -> None:
    manager = BlockManager(8, 4)
    table = filled(manager, [1, 2, 3, 4, 5, 6, 7, 8, 9])

    assert manager.match_prefix([1, 2, 3, 4, 5, 6, 7, 8, 70]) == table[:2]


def test_released_pages_are_found_until_they_are_taken_again() -> None:
    manager = BlockManager(4, 4)
    table = filled(manager, [1, 2, 3, 4, 5])
    first = table[0]
    manager.release(table)

    found = manager.match_prefix([1, 2, 3, 4, 5])
    assert found == [first]
    manager.release(found)
    manager.extend(table, 16)
    assert manager.match_prefix([1, 2, 3, 4, 5]) == []


def test_matched_pages_are_held() -> None:
    manager = BlockManager(2, 4)
    table = filled(manager, [1, 2, 3, 4])
    manager.release(table)

    found = manager.match_prefix([1, 2, 3, 4, 5])
    assert manager.num_free_pages == 1
    manager.extend(table, 4)
    assert table != found


def test_match_leaves_at_least_one_token_to_compute() -> None:
    manager = BlockManager(8, 4)
    table = filled(manager, list(range(8)))

    assert manager.match_prefix(list(range(8))) == table[:1]


def test_half_full_page_is_not_found() -> None:
    manager = BlockManager(8, 4)
    filled(manager, [1, 2, 3])

    assert manager.match_prefix([1, 2, 3, 4, 5]) == []


def test_page_is_registered_only_when_all_its_tokens_are_computed() -> None:
    manager, table = BlockManager(8, 4), []
    manager.extend(table, 8)

    manager.register_full_pages(table, list(range(8)), 7)

    assert manager.match_prefix(list(range(9))) == table[:1]


def test_same_tokens_behind_another_beginning_are_not_found() -> None:
    manager = BlockManager(8, 4)
    filled(manager, [1, 1, 1, 1, 5, 6, 7, 8])
    other = filled(manager, [2, 2, 2, 2, 9, 9, 9, 9])

    assert manager.match_prefix([2, 2, 2, 2, 5, 6, 7, 8, 0]) == other[:1]


def test_page_behind_an_evicted_one_is_not_found_by_the_next_owner_of_its_place() -> None:
    manager = BlockManager(3, 2)
    table = filled(manager, [1, 1, 5, 5])
    manager.release(table)  # freed from the back: [5, 5] would go first
    kept = manager.match_prefix([1, 1, 0])
    assert len(kept) == 1

    other = filled(manager, [2, 2, 3, 3])

    assert manager.match_prefix([1, 1, 5, 5, 0]) == kept
    assert manager.match_prefix([2, 2, 5, 5, 0]) == other[:1]


def test_second_computation_of_the_same_tokens_leaves_the_first_to_be_found() -> None:
    manager = BlockManager(8, 4)
    first, second = filled(manager, [1, 2, 3, 4, 5]), filled(manager, [1, 2, 3, 4, 5])

    assert first[0] != second[0]
    assert manager.match_prefix([1, 2, 3, 4, 5]) == first[:1]


def test_sequence_behind_a_twin_page_is_found_as_one_chain() -> None:
    manager = BlockManager(8, 4)
    first = filled(manager, [1, 2, 3, 4])
    second = filled(manager, [1, 2, 3, 4, 5, 6, 7, 8])

    assert manager.match_prefix([1, 2, 3, 4, 5, 6, 7, 8, 9]) == [first[0], second[1]]


def test_last_page_of_a_released_sequence_is_taken_first() -> None:
    manager = BlockManager(3, 4)
    table = filled(manager, list(range(12)))
    pages = list(table)
    manager.release(table)

    manager.extend(table, 4)

    assert table == [pages[2]]


def test_truncated_pages_are_taken_before_pages_that_can_be_found() -> None:
    manager = BlockManager(4, 4)
    manager.release(filled(manager, list(range(8))))
    table: list[int] = []
    manager.extend(table, 8)
    first, second = table

    manager.truncate(table, 3)

    assert (table, manager.num_free_pages) == ([first], 3)
    manager.extend(table, 8)
    assert table == [first, second]
    assert len(manager.match_prefix(list(range(9)))) == 2


def test_truncating_leaves_a_shared_page_to_the_other_table() -> None:
    manager = BlockManager(4, 4)
    table: list[int] = []
    manager.extend(table, 8)
    twin = manager.fork(table)

    manager.truncate(table, 4)

    assert (manager.num_free_pages, len(table), len(twin)) == (2, 1, 2)


@dataclass(eq=False)
class Text:
    """A sequence of the model: its tokens, of which the first num_computed stand in its pages."""

    token_ids: list[int]
    table: list[int] = field(default_factory=list)
    num_computed: int = 0


class Histories(RuleBasedStateMachine):
    """Random lives of sequences; `contents`: what each page really holds, as (all tokens before it, its own tokens)."""

    num_pages, page_size = 7, 2

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(self.num_pages, self.page_size)
        self.texts: list[Text] = []
        self.contents: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def write(self, text: Text, position: int) -> None:
        """What a forward pass does to the page of one position."""
        entry = position // self.page_size
        start = entry * self.page_size
        before, own = tuple(text.token_ids[:start]), tuple(text.token_ids[start : position + 1])
        self.contents[text.table[entry]] = before, own

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def add(self, token_ids: list[int]) -> None:
        table = self.manager.match_prefix(token_ids)
        assert len(table) * self.page_size < len(token_ids)
        for entry, page_id in enumerate(table):
            start = entry * self.page_size
            expected = tuple(token_ids[:start]), tuple(token_ids[start : start + self.page_size])
            assert self.contents[page_id] == expected
        self.texts.append(Text(token_ids, table, len(table) * self.page_size))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), count=st.integers(1, 5), token_id=st.integers(0, 1))
    def compute(self, data: st.DataObject, count: int, token_id: int) -> None:
        """As Engine does: make the half full page writable, extend, write, register; then a token is chosen."""
        text = data.draw(st.sampled_from(self.texts))
        end = min(len(text.token_ids), text.num_computed + count)
        try:
            if text.num_computed < len(text.table) * self.page_size and end > text.num_computed:
                copy = self.manager.make_writable(text.table, text.num_computed)
                if copy is not None:
                    self.contents[copy.destination] = self.contents[copy.source]
            self.manager.extend(text.table, end)
        except CapacityError:
            return
        for position in range(text.num_computed, end):
            self.write(text, position)
        text.num_computed = end
        self.manager.register_full_pages(text.table, text.token_ids, end)
        if end == len(text.token_ids) < 13:
            text.token_ids.append(token_id)

    @precondition(lambda self: 0 < len(self.texts) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.texts.append(Text(list(text.token_ids), self.manager.fork(text.table), text.num_computed))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.texts.remove(text)
        self.manager.release(text.table)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), count=st.integers(1, 5))
    def guess(self, data: st.DataObject, count: int) -> None:
        """As Engine does with a draft that is rejected: write behind the tokens, then give back the pages."""
        text = data.draw(st.sampled_from(self.texts))
        end = text.num_computed + count
        try:
            for entry in range(text.num_computed // self.page_size, len(text.table)):
                copy = self.manager.make_writable(text.table, entry * self.page_size)
                if copy is not None:
                    self.contents[copy.destination] = self.contents[copy.source]
            self.manager.extend(text.table, end)
        except CapacityError:
            return
        guessed = Text([*text.token_ids[: text.num_computed], *[7] * count], text.table)
        for position in range(text.num_computed, end):
            self.write(guessed, position)
        self.manager.truncate(text.table, text.num_computed)

    @invariant()
    def no_page_leaks_and_none_is_used_twice(self) -> None:
        held = {page_id for text in self.texts for page_id in text.table}
        assert self.manager.num_free_pages == self.num_pages - len(held)
        assert all(len(set(text.table)) == len(text.table) for text in self.texts)

    @invariant()
    def every_computed_token_still_stands_in_its_page(self) -> None:
        for text in self.texts:
            for entry in range(-(-text.num_computed // self.page_size)):
                start = entry * self.page_size
                before, own = self.contents[text.table[entry]]
                needed = tuple(text.token_ids[start : min(start + self.page_size, text.num_computed)])
                assert before == tuple(text.token_ids[:start])
                assert own[: len(needed)] == needed


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestRandomHistories = Histories.TestCase
