"""Streams of batches that another process can open: there pickle finds this module by its name, but not a test's."""

from __future__ import annotations

from pathlib import Path

from cg_local.training import fim, packing, segments

SOURCE = Path(packing.__file__).read_text()


def encode(text: str) -> list[int]:
    return [256 + ord(char) % 1000 for char in text]


def open_stream(text: str = SOURCE) -> packing.BatchStream:
    recipe = packing.DataRecipe(fim.FimRecipe(), files_per_block=2, multi_file_rate=0.5)
    return packing.BatchStream(
        [segments.outline("own", f"{i}.py", text, encode, 2000) for i in range(4)], encode, recipe, 3
    )


def open_and_die() -> packing.BatchStream:
    raise MemoryError
