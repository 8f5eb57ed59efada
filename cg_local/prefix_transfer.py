"""K and V between an engine's page pool and the store on disk.

This file owns what of a sequence is written and what is taken back into free pages. It owns neither the files
(`kv_store`) nor the pages (`block_manager`, `kv_cache`). Invariant: a page becomes findable in the pool only after all
of its bytes have arrived sound, so a prefix from the disk gives the same bits as one that was computed here; after any
fault the pool is as if the store was empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import llvmlite
import numba
import numpy as np

from cg_local import kernels
from cg_local.engine import Engine
from cg_local.errors import CapacityError
from cg_local.kv_cache import KVCache, page_bytes
from cg_local.kv_store import CONVERSATIONS, KVStore, PageKind, ShouldStop

LAYOUT_VERSION = 1
"""Counted up when the bytes of a page come to mean something else."""

_SOURCES = Path(__file__).parent


class PrefixTransfer:
    """Brings prefixes from a store into an engine's pool and back.

    Args:
        engine: whose pool.
        store: the files.
        label: the model's name for people.
        use: what the pages are kept for (see `kv_store`).

    Attributes:
        kind: what pages in the store must have been written for.
    """

    def __init__(self, engine: Engine, store: KVStore, label: str, use: str = CONVERSATIONS) -> None:
        self._engine, self._store = engine, store
        self.kind = page_kind(engine, label, use)

    def restore(self, token_ids: Sequence[int]) -> int:
        """Bring the stored pages of a prompt into the pool, so that `Engine.add` finds them; only between two steps.

        Returns:
            Tokens that were brought; 0 where the pool knew as many already.
        """
        manager, page_size = self._engine.block_manager, self._engine.config.page_size
        table = manager.match_prefix(token_ids)
        num_known = num_ready = len(table)
        # One token is left over, because its logits must be computed.
        wanted = (len(token_ids) - 1) // page_size
        try:
            for content in self._stored(token_ids[: wanted * page_size], num_known) if num_known < wanted else ():
                manager.extend(table, (num_ready + 1) * page_size)
                _put(self._engine.cache, table[-1], content)
                num_ready += 1
        except CapacityError:
            pass  # other sequences hold the rest of the pool
        finally:
            manager.register_full_pages(table, token_ids, num_ready * page_size)
            manager.release(table)
        return (num_ready - num_known) * page_size

    def save(self, token_ids: Sequence[int], should_stop: ShouldStop = lambda: False) -> int:
        """Write the pages of a sequence that the pool still holds and the store does not.

        Other threads may not step the engine meanwhile.

        Args:
            token_ids: prompt and answer; the last, unfinished page is left out.
            should_stop: asked before each page; what is written until then is kept.

        Returns:
            Bytes written.
        """
        manager, cache = self._engine.block_manager, self._engine.cache
        # match_prefix leaves a token over; behind this one no page is full.
        table = manager.match_prefix([*token_ids, 0])
        known = token_ids[: len(table) * self._engine.config.page_size]
        try:
            return self._store.write(
                self.kind, known, lambda place, out: _get(cache, table[place], out), should_stop=should_stop
            )
        finally:
            manager.release(table)

    def _stored(self, token_ids: Sequence[int], first: int) -> Iterator[memoryview]:
        """Yield the stored pages from the one at `first` on, until one is missing."""
        for pages in self._store.find(self.kind, token_ids):
            end = pages.first_page + pages.num_pages
            if end <= first:
                continue
            for content in self._store.read(pages, self.kind, first):
                yield content
                first += 1
            if first < end:
                return


def page_kind(engine: Engine, label: str, use: str = CONVERSATIONS) -> PageKind:
    """Return what pages in the store must have been written for, to be this engine's.

    Two engines share pages if they compute the same bits: the same weights, roundings, instructions and code.

    Args:
        engine: whose pages.
        label: the model's name for people.
        use: what they are kept for.
    """
    model, cache = engine.model, engine.cache
    metadata = model.folder.metadata
    parts = {
        "layout": LAYOUT_VERSION,
        "weights": [metadata.get(name) for name in ("config_sha256", "formats", "sha256")],
        "kv_dtype": cache.dtype,
        "page_size": cache.page_size,
        "activations": model.activations,
        "instructions": kernels.instruction_set_name(),
        "compiler": [numba.__version__, llvmlite.__version__],
        "code": _code_digest(),
    }
    if use != CONVERSATIONS:
        parts["use"] = use
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
    size = page_bytes(model.config, cache.page_size, cache.dtype)
    return PageKind(digest, f"{label} ({model.folder.scheme}, {cache.dtype})", cache.page_size, size, use)


def _get(cache: KVCache, page_id: int, out: memoryview) -> None:
    """Copy a page, its keys and then its values of all layers, into a buffer."""
    start = 0
    for array in (cache.keys, cache.values):
        page = array[:, page_id]
        np.copyto(np.frombuffer(out, page.dtype, page.size, start).reshape(page.shape), page)
        start += page.nbytes


def _put(cache: KVCache, page_id: int, content: memoryview) -> None:
    """Copy a buffer into a page."""
    start = 0
    for array in (cache.keys, cache.values):
        page = array[:, page_id]
        page[...] = np.frombuffer(content, page.dtype, page.size, start).reshape(page.shape)
        start += page.nbytes


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Digest of the sources that decide on the bits of K and V."""
    digest = hashlib.sha256()
    for path in [_SOURCES / "model.py", _SOURCES / "kv_cache.py", *sorted(_SOURCES.glob("kernels/*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
