"""Joins documents into fixed-size batches in which they cannot see each other.

Owns the order of the data, multi-file documents, the packing of rows and their masks. It does not choose FIM splits.
Invariant: batch number (block, index) depends only on the corpus, the recipe and the seed, so a run resumes exactly.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cg_local.errors import TrainingError
from cg_local.training import fim, segments

MIN_JOINED_TOKENS = 100
"""Less room than this is not filled with another file: its sentinels and path would take a third of it."""


@dataclass(frozen=True)
class DataRecipe:
    """How files become batches.

    Attributes:
        fim: mixture of FIM documents.
        multi_file_rate: share of documents that begin with the files before theirs in the repository's order, each
            with its own sentinels.
        max_joined_files: how many files before its own a document may take; only as many as have room.
        middle_weight: loss weight of the tokens behind <|fim_middle|>, relative to 1 for all others: they are few, and
            only they teach to look at both sides.
        shortest_share: each file is cut into pieces of at most a share of the row drawn between this and 1.
        files_per_block: files whose pieces are shuffled together.
        repeats: how often a package is read per epoch, by name, where it is not `other_repeats`; of a fraction, the
            share of files is drawn anew in each epoch.
        other_repeats: the same for packages that `repeats` does not name.
    """

    fim: fim.FimRecipe
    multi_file_rate: float = 0.12
    max_joined_files: int = 3
    middle_weight: float = 2.0
    shortest_share: float = 0.25
    files_per_block: int = 160
    repeats: tuple[tuple[str, float], ...] = ()
    other_repeats: float = 1.0


@dataclass(frozen=True)
class Batch:
    """One training step's data, all arrays [num_rows, sequence_length].

    Attributes:
        token_ids: int32; 0 where a row is not filled.
        document_ids: int32; tokens attend only within equal ids; 0 where a row is not filled.
        positions: int32; 0 at each document's <bos>.
        weights: float32; loss weight of predicting the NEXT token from this one; 0 at the end of a document.
    """

    token_ids: np.ndarray
    document_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Packed:
    """A whole training document: token ids with <bos>, and the loss weight of each token as a target."""

    token_ids: np.ndarray
    weights: np.ndarray


def join_files(files: list[fim.Document], middle_weight: float, *, has_eos: bool) -> Packed:
    """Put <bos> before the files' documents and <eos> behind them if wanted."""
    token_ids, weights = [fim.BOS_ID], [0.0]
    for file in files:
        token_ids += file.token_ids
        num_middle = len(file.token_ids) - file.middle_start
        weights += [1.0] * file.middle_start + [middle_weight] * num_middle
    if has_eos:
        token_ids.append(fim.EOS_ID)
        weights.append(1.0)
    return Packed(np.array(token_ids, np.int32), np.array(weights, np.float32))


def pack_rows(documents: list[Packed], sequence_length: int) -> Batch:
    """Place documents in rows, longest first, each into the fullest row that has room.

    Args:
        documents: each at most `sequence_length` tokens.
        sequence_length: tokens of a row.

    Returns:
        All rows as one batch; document ids count from 1 within a row.
    """
    rows: list[list[Packed]] = []
    by_room: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    for document in sorted(documents, key=lambda item: -len(item.token_ids)):
        size = len(document.token_ids)
        room = next((room for room in range(size, sequence_length) if by_room[room]), None)
        row = by_room[room].pop() if room is not None else len(rows)
        if room is None:
            rows.append([])
            room = sequence_length
        rows[row].append(document)
        by_room[room - size].append(row)
    return lay_out(rows, sequence_length)


def lay_out(rows: list[list[Packed]], sequence_length: int) -> Batch:
    """Write rows of documents into arrays; see `Batch`."""
    shape = (len(rows), sequence_length)
    token_ids, document_ids, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, start=1):
            end = start + len(document.token_ids)
            token_ids[row, start:end] = document.token_ids
            document_ids[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            weights[row, start : end - 1] = document.weights[1:]
            start = end
    return Batch(token_ids, document_ids, positions, weights)


class BatchStream:
    """The endless, reproducible stream of training batches."""

    def __init__(self, files: list[segments.Outline], encode: fim.Encode, recipe: DataRecipe, seed: int) -> None:
        """Make the stream.

        Args:
            files: outlines of the training files, in a fixed order.
            encode: text to ids.
            recipe: how files become documents.
            seed: any non-negative integer.
        """
        repeats = dict(recipe.repeats)
        self.files, self.encode, self.recipe, self.seed = files, encode, recipe, seed
        self.times = np.array([repeats.get(file.package, recipe.other_repeats) for file in files], np.float64)
        self.blocks_per_epoch = max(1, int(self.times.sum()) // recipe.files_per_block)

    def epoch_files(self, epoch: int) -> np.ndarray:
        """Numbers of the files of one epoch, int64, in its order; a fraction of a repeat is drawn by chance."""
        rng = np.random.default_rng((self.seed, epoch))
        times = np.floor(self.times + rng.random(len(self.times))).astype(np.int64)
        return rng.permutation(np.repeat(np.arange(len(self.files)), times))

    def documents(self, block: int, max_tokens: int) -> Iterator[Packed]:
        """All documents of one block.

        Args:
            block: number of the block, from 0 without end; an epoch has `blocks_per_epoch` of them.
            max_tokens: longest document; longer ones, which re-encoding at a split can make, are left out.
        """
        epoch, index = divmod(block, self.blocks_per_epoch)
        shuffled = self.epoch_files(epoch)
        rng = np.random.default_rng((self.seed, epoch, index))
        for number in shuffled[index :: self.blocks_per_epoch]:
            file = self.files[number]
            # Pieces of all sizes: short ones are what a cursor sees in a small file, and they fill the rows' ends.
            room = int((max_tokens - 40) * rng.uniform(self.recipe.shortest_share, 1.0))
            for segment in segments.cut(file, room, rng):
                if segment.text:
                    document = self.document(segment, int(number), max_tokens, rng)
                    if 16 <= len(document.token_ids) <= max_tokens:
                        yield document

    def document(self, segment: segments.Segment, number: int, max_tokens: int, rng: np.random.Generator) -> Packed:
        """The training document of one segment, in a share of cases behind the files that its repository's order puts
        before its own: what it imports, or what it tests."""
        parts = [self.draw(segment, rng)]
        if rng.random() < self.recipe.multi_file_rate:
            room = max_tokens - 2 - len(parts[0].token_ids)
            for before in range(number - 1, max(-1, number - 1 - self.recipe.max_joined_files), -1):
                if not self.is_beside(before, number) or room <= MIN_JOINED_TOKENS:
                    break
                # A file that fits is taken whole, of a larger one a piece.
                pieces = [piece for piece in segments.cut(self.files[before], room - 40, rng) if piece.text]
                if pieces:
                    part = self.draw(pieces[int(rng.integers(len(pieces)))], rng)
                    if len(part.token_ids) <= room:
                        parts.insert(0, part)
                        room -= len(part.token_ids)
        return join_files(parts, self.recipe.middle_weight, has_eos=bool(rng.random() < self.recipe.fim.eos_rate))

    def is_beside(self, one: int, other: int) -> bool:
        """Whether two files stand in the same list of the same repository's order."""
        first, second = self.files[one], self.files[other]
        return (first.package, first.group) == (second.package, second.group)

    def draw(self, segment: segments.Segment, rng: np.random.Generator) -> fim.Document:
        """One segment's FIM document."""
        return fim.draw_document(
            self.encode, segment.path, segment.text, segment.blocks, recipe=self.recipe.fim, rng=rng
        )

    def batches(self, block: int, num_rows: int, sequence_length: int) -> Iterator[Batch]:
        """The batches of one block in a shuffled row order; rows that do not fill a batch are left out."""
        packed = pack_rows(list(self.documents(block, sequence_length)), sequence_length)
        order = np.random.default_rng((self.seed, block, 1)).permutation(len(packed.token_ids))
        for start in range(0, len(order) - num_rows + 1, num_rows):
            rows = order[start : start + num_rows]
            yield Batch(packed.token_ids[rows], packed.document_ids[rows], packed.positions[rows], packed.weights[rows])

    def blocks(self, first: int, num_rows: int, sequence_length: int) -> Iterator[Iterable[Batch]]:
        """The batches of each block from number `first` on, without end."""
        for block in itertools.count(first):
            yield self.batches(block, num_rows, sequence_length)

    def batches_from(
        self, position: tuple[int, int], num_rows: int, sequence_length: int
    ) -> Iterator[tuple[tuple[int, int], Batch]]:
        """Batches without end, each with the position behind it; see `prefetch`.

        Raises:
            TrainingError: a whole epoch gives not one batch.
        """
        first, skip = position
        num_empty = 0
        for block, batches in enumerate(self.blocks(first, num_rows, sequence_length), start=first):
            num_empty += 1
            for index, batch in enumerate(batches):
                num_empty = 0
                if index >= skip:
                    yield (block, index + 1), batch
            skip = 0
            if num_empty > self.blocks_per_epoch:
                break
        raise TrainingError(
            f"{len(self.files)} files give no batch of {num_rows} rows of {sequence_length} tokens. Name more sources, "
            "or make batch_tokens in [run] smaller or files_per_block in [data] larger."
        )


def prefetch(
    stream: BatchStream, position: tuple[int, int], num_rows: int, sequence_length: int
) -> Generator[tuple[tuple[int, int], Batch], None, None]:
    """Batches made by a background thread.

    Args:
        stream: the data.
        position: (block, index within block) of the first batch wanted.
        num_rows: rows of a batch.
        sequence_length: tokens of a row.

    Yields:
        The position BEHIND each batch, from which a resumed run goes on, and the batch. Endless.

    Raises:
        TrainingError: as `BatchStream.batches_from`.
    """
    ready: queue.Queue[tuple[tuple[int, int], Batch] | Exception] = queue.Queue(maxsize=40)
    is_closed = threading.Event()

    def put(item: tuple[tuple[int, int], Batch] | Exception) -> None:
        while not is_closed.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in stream.batches_from(position, num_rows, sequence_length):
                put(item)
                if is_closed.is_set():
                    return
        except Exception as error:  # it belongs to whoever waits for batches, not to this thread
            put(error)

    threading.Thread(target=produce, name="batches", daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        is_closed.set()
