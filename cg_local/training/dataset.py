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
            f"{tokenizer}: not a SentencePiece model. Make one with cg_local.training.tokenizer_trainer."
        ) from error


def is_used(package: str, path: str, recipe: Recipe) -> bool:
    """Whether a file takes part in the run: its package is not repeated 0 times, and tests only in the wanted share."""
    if dict(recipe.data.repeats).get(package, recipe.data.other_repeats) == 0:
        return False
    draw = int(hashlib.sha256(f"{package}/{path}".encode()).hexdigest()[8:16], 16) % 1000
    return "test" not in path or draw < 1000 * recipe.run.test_share


def read_outlines(corpus_file: Path, encoder: sentencepiece.SentencePieceProcessor, recipe: Recipe) -> list[Outline]:
    """Parse and count every file of one corpus file that the run uses.

    Raises:
        TrainingError: the corpus file is missing.
    """
    if not corpus_file.is_file():
        raise TrainingError(f"{corpus_file}: missing. Make the corpus with cg_local.training.prepare.")
    outlines = []
    with corpus_file.open() as lines:
        for line in lines:
            file = json.loads(line)
            if is_used(file["package"], file["path"], recipe):
                outlines.append(outline(file["package"], file["path"], file["text"], encoder.encode, MAX_UNIT_TOKENS))
    return outlines


def open_streams(corpus: Path, tokenizer: Path, recipe: Recipe) -> tuple[BatchStream, BatchStream]:
    """The training and the validation stream.

    Args:
        corpus: folder that `prepare` wrote; the outlines are cached in it.
        tokenizer: SentencePiece model.
        recipe: the run's recipe.
    """
    encoder = load_encoder(tokenizer)
    used = [name for name, times in recipe.data.repeats if times == 0]
    source = json.dumps(
        [used, recipe.run.test_share, (corpus / "train.jsonl").stat().st_size, MAX_UNIT_TOKENS]
    ).encode()
    cache = corpus / f"outlines-{hashlib.sha256(source + tokenizer.read_bytes()).hexdigest()[:12]}.pickle"
    if cache.is_file():
        train, held_out = pickle.loads(cache.read_bytes())
    else:
        train, held_out = (read_outlines(corpus / name, encoder, recipe) for name in ("train.jsonl", "held_out.jsonl"))
        partial = cache.with_suffix(".partial")
        partial.write_bytes(pickle.dumps((train, held_out), protocol=5))
        partial.replace(cache)
    encode = encoder.encode
    return (
        BatchStream(train, encode, recipe.data, recipe.run.seed),
        BatchStream(held_out, encode, recipe.data, recipe.run.seed + 1_000_000),
    )
