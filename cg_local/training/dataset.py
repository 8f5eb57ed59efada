"""Opens a prepared corpus as streams of training and validation batches.

Owns the outlines of the files and their cache, and which files a run uses. It does not filter text; `prepare` did.
Invariant: the cache is used only for the corpus, the tokenizer and the options it was made from.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import sentencepiece

from cg_local.errors import TrainingError
from cg_local.training.packing import BatchStream
from cg_local.training.recipe import Recipe
from cg_local.training.segments import Outline, outline

OUTLINE_VERSION = 2
"""Of the outlines' form and of what `segments.outline` finds; raised with either, so that no old cache is read."""

MAX_UNIT_TOKENS = 400
"""Classes above this are cut into members: about the piece size at the row length 512."""


def load_encoder(tokenizer: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as SentencePiece's own object.

    Raises:
        TrainingError: the file is missing or unreadable.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{tokenizer}: not a readable SentencePiece model. Leave out [corpus] tokenizer to have one trained."
        ) from error


def is_used(package: str, path: str, recipe: Recipe) -> bool:
    """Whether a file takes part in the run: its package is not repeated 0 times, and tests only in the wanted share."""
    if dict(recipe.data.repeats).get(package, recipe.data.other_repeats) == 0:
        return False
    draw = int(hashlib.sha256(f"{package}/{path}".encode()).hexdigest()[8:16], 16) % 1000
    return "test" not in path or draw < 1000 * recipe.run.test_share


def read_outlines(corpus_file: Path, encoder: sentencepiece.SentencePieceProcessor, recipe: Recipe) -> list[Outline]:
    """Parse and count every file of one corpus file that the run uses, in the file's order.

    Raises:
        TrainingError: the corpus file is missing.
    """
    if not corpus_file.is_file():
        raise TrainingError(f"{corpus_file}: missing. Delete {corpus_file.parent} to have it made again.")
    outlines = []
    with corpus_file.open(encoding="utf-8") as lines:
        for line in lines:
            file = json.loads(line)
            package, path, group = file["package"], file["path"], file.get("group", 0)
            if is_used(package, path, recipe):
                outlines.append(outline(package, path, file["text"], encoder.encode, MAX_UNIT_TOKENS, group))
    return outlines


def cache_path(corpus: Path, tokenizer: Path, recipe: Recipe) -> Path:
    """Where the outlines of a corpus are kept: a name that everything they depend on is hashed into."""
    unused = [name for name, times in recipe.data.repeats if times == 0]
    sizes = [(corpus / name).stat().st_size for name in ("train.jsonl", "held_out.jsonl") if (corpus / name).is_file()]
    source = json.dumps([OUTLINE_VERSION, unused, recipe.data.other_repeats == 0, recipe.run.test_share, sizes])
    digest = hashlib.sha256(source.encode() + tokenizer.read_bytes()).hexdigest()
    return corpus / f"outlines-{digest[:12]}.pickle"


def open_streams(corpus: Path, tokenizer: Path, recipe: Recipe) -> tuple[BatchStream, BatchStream]:
    """The training and the validation stream.

    Args:
        corpus: folder that `prepare` wrote; the outlines are cached in it.
        tokenizer: SentencePiece model.
        recipe: the run's recipe.

    Raises:
        TrainingError: the corpus or the tokenizer cannot be read, or no file is left to train on.
    """
    encoder = load_encoder(tokenizer)
    cache = cache_path(corpus, tokenizer, recipe)
    if cache.is_file():
        train, held_out = pickle.loads(cache.read_bytes())
    else:
        train, held_out = (read_outlines(corpus / name, encoder, recipe) for name in ("train.jsonl", "held_out.jsonl"))
        partial = cache.with_suffix(".partial")
        partial.write_bytes(pickle.dumps((train, held_out), protocol=5))
        partial.replace(cache)
    if not train:
        raise TrainingError(f"{corpus}: no file is left to train on; see repeats, other_repeats and test_share.")
    encode = encoder.encode
    return (
        BatchStream(train, encode, recipe.data, recipe.run.seed),
        BatchStream(held_out, encode, recipe.data, recipe.run.seed + 1_000_000),
    )


def open_training_stream(corpus: Path, tokenizer: Path, recipe: Recipe) -> BatchStream:
    """The training stream alone; see `open_streams`."""
    return open_streams(corpus, tokenizer, recipe)[0]
