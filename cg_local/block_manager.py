"""Who holds which page: free list, reference counts, block tables and the prefix cache, in plain integers.

This file owns the bookkeeping of pages; the arrays behind them are `kv_cache.py`'s. A block table is a sequence's list
of page ids: entry i holds the K and V of its tokens i * page_size .. (i + 1) * page_size - 1.

Invariants: a page is either free (count 0) or held by as many block tables as its count says. A full page is found
again by its content: the key is the serial number of the page before it and the page's own tokens, compared whole, so a
match means that all tokens from the start are the same. Freed pages keep their content until they are taken again, and
are taken in the order in which they were freed; a page that `truncate` gave back holds nothing and comes before them.

Source of the design: PagedAttention, arXiv 2309.06180, and the automatic prefix cache built on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cg_local.errors import CapacityError

ROOT_SERIAL = 0

PageKey = tuple[int, tuple[int, ...]]


@dataclass
class _Page:
    count: int = 0
    serial: int = ROOT_SERIAL
    key: PageKey | None = None


@dataclass(frozen=True)
class PageCopy:
    """A page whose content must be copied before it is written: `source` stays shared, `destination` is ours."""

    source: int
    destination: int


class BlockManager:
    """Hands out pages of K and V and finds full ones again.

    Args:
        num_pages: how many pages exist; ids are 0 .. num_pages - 1.
        page_size: tokens a page holds.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._pages = [_Page() for _ in range(num_pages)]
        self._free: OrderedDict[int, None] = OrderedDict((page_id, None) for page_id in range(num_pages))
        self._by_key: dict[PageKey, int] = {}
        self._next_serial = ROOT_SERIAL + 1

    @property
    def num_free_pages(self) -> int:
        """Pages that no block table holds; their old content may still be found by prefix."""
        return len(self._free)

    def match_prefix(self, token_ids: Sequence[int]) -> list[int]:
        """Take hold of the cached pages that a sequence starting with these tokens can use.

        At least one token is left over, because its logits must be computed.

        Returns:
            Page ids; the first len(result) * page_size tokens need no prefill.
        """
        matched: list[int] = []
        serial = ROOT_SERIAL
        for first in range(0, len(token_ids) - self.page_size, self.page_size):
            page_id = self._by_key.get((serial, tuple(token_ids[first : first + self.page_size])))
            if page_id is None:
                break
            self._hold(page_id)
            matched.append(page_id)
            serial = self._pages[page_id].serial
        return matched

    def extend(self, block_table: list[int], num_tokens: int) -> None:
        """Add fresh pages to a block table until it has room for `num_tokens` tokens.

        Raises:
            CapacityError: too few free pages; the block table is unchanged.
        """
        missing = -(-num_tokens // self.page_size) - len(block_table)
        self._require(missing, f"a sequence of {num_tokens} tokens needs {missing} more")
        for _ in range(missing):
            block_table.append(self._take())

    def make_writable(self, block_table: list[int], position: int) -> PageCopy | None:
        """Make sure that the page of a token position is held by this block table alone before it is written.

        Returns:
            The copy to make, or None when the page already is ours alone.

        Raises:
            CapacityError: the page is shared and no page is free for the copy; nothing has changed.
        """
        entry = position // self.page_size
        source = block_table[entry]
        if self._pages[source].count == 1:
            return None
        self._require(1, "to write into a shared page takes 1 more")
        destination = self._take()
        block_table[entry] = destination
        self._drop(source)
        return PageCopy(source, destination)

    def register_full_pages(self, block_table: Sequence[int], token_ids: Sequence[int], num_computed: int) -> None:
        """Make the full pages of a sequence findable: those whose tokens all have K and V.

        Args:
            block_table: the sequence's pages.
            token_ids: its tokens.
            num_computed: how many of them have K and V in the pages.
        """
        serial = ROOT_SERIAL
        for entry in range(num_computed // self.page_size):
            page = self._pages[block_table[entry]]
            if page.key is None:
                key = serial, tuple(token_ids[entry * self.page_size : (entry + 1) * self.page_size])
                twin = self._by_key.get(key)
                if twin is not None:
                    # Another sequence computed the same tokens first; its page stays the one to be found.
                    serial = self._pages[twin].serial
                    continue
                page.key, page.serial = key, self._next_serial
                self._next_serial += 1
                self._by_key[key] = block_table[entry]
            serial = page.serial

    def fork(self, block_table: Sequence[int]) -> list[int]:
        """Return a second block table that shares all pages of the first."""
        for page_id in block_table:
            self._hold(page_id)
        return list(block_table)

    def truncate(self, block_table: list[int], num_tokens: int) -> None:
        """Give back the pages behind the first `num_tokens` tokens.

        They hold no token that counts, so they are taken again before pages that may still be found by prefix.
        """
        while len(block_table) > -(-num_tokens // self.page_size):
            page_id = block_table.pop()
            self._drop(page_id)
            if page_id in self._free and self._pages[page_id].key is None:
                self._free.move_to_end(page_id, last=False)

    def release(self, block_table: list[int]) -> None:
        """Give back a sequence's pages and empty its block table; the last pages become the first to be taken again."""
        for page_id in reversed(block_table):
            self._drop(page_id)
        block_table.clear()

    def _require(self, missing: int, need: str) -> None:
        if missing > len(self._free):
            raise CapacityError(
                f"K/V cache: {need} page(s) of {self.page_size} tokens, {len(self._free)} of {self.num_pages} free; "
                "shorten the prompt, ask for fewer tokens, end other sequences or load with a larger max_context"
            )

    def _hold(self, page_id: int) -> None:
        if self._pages[page_id].count == 0:
            del self._free[page_id]
        self._pages[page_id].count += 1

    def _take(self) -> int:
        page_id, _ = self._free.popitem(last=False)
        page = self._pages[page_id]
        if page.key is not None:
            del self._by_key[page.key]
            page.key = None
        page.count = 1
        return page_id

    def _drop(self, page_id: int) -> None:
        page = self._pages[page_id]
        page.count -= 1
        if page.count == 0:
            self._free[page_id] = None
