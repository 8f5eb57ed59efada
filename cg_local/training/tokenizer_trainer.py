"""Trains a SentencePiece model whose first 169 ids are laid out as in CodeGemma's tokenizer.

Owns the id layout and the trainer's options; encoding text is `cg_local.tokenizer`'s work.
Invariant: ids 0..168 are the same pieces with the same types in every model it writes.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from cg_local.errors import TrainingError

VOCAB_SIZE = 4096
FIRST_LEARNED_ID = 169
FIM_PIECES = {67: "<|fim_prefix|>", 68: "<|fim_middle|>", 69: "<|fim_suffix|>", 70: "<|file_separator|>"}
SPACE = "\u2581"
"""SentencePiece's visible spelling of a space."""


def reserved_pieces() -> list[str]:
    """The pieces of ids 4..168 in order.

    Returns:
        165 pieces: 3 reserved, 99 unused of which ids 67..70 carry the FIM names, 2 turn marks, runs of 1..31 newlines,
        runs of 2..31 spaces. All are USER_DEFINED in the model.

    Source: the published tokenizer of google/codegemma-2b, ids 4..168.
    """
    pieces = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{number}>" for number in range(99))]
    pieces += ["<start_of_turn>", "<end_of_turn>"]
    pieces += ["\n" * length for length in range(1, 32)] + [SPACE * length for length in range(2, 32)]
    for token_id, piece in FIM_PIECES.items():
        pieces[token_id - 4] = piece
    return pieces


def sample_lines(texts: Iterable[str], max_bytes: int, seed: int) -> Iterator[str]:
    """Whole files in a seeded random order until `max_bytes` characters are reached, split into lines with line ends.

    Lines keep their newline, because newline runs are pieces of the vocabulary.
    """
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    for text in shuffled:
        max_bytes -= len(text)
        if max_bytes < 0:
            return
        yield from text.splitlines(keepends=True)


@contextmanager
def clear_error(vocab_size: int) -> Iterator[None]:
    """Turn the trainer's complaint into one about the option that it comes from."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise TrainingError(
            f"vocab_size in [model] is {vocab_size}: no tokenizer of this size can be trained on these texts. {reason}"
        ) from error


def train_tokenizer(
    texts: Iterable[str], out: Path, *, vocab_size: int = VOCAB_SIZE, max_bytes: int = 20_000_000
) -> None:
    """Train on a sample of `texts` and write the model.

    Args:
        texts: training files.
        out: the `.model` file to write.
        vocab_size: number of pieces, the 169 fixed ones and 256 bytes included.
        max_bytes: size of the sample; 20 MB is enough for 4096 pieces.

    Raises:
        TrainingError: the vocabulary is too small for the fixed pieces, or too large for what the texts hold.
    """
    with tempfile.TemporaryDirectory() as folder, clear_error(vocab_size):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample_lines(texts, max_bytes, seed=0), model_prefix=f"{folder}/nano", model_type="bpe",
            vocab_size=vocab_size, byte_fallback=True, split_digits=True, add_dummy_prefix=False,
            remove_extra_whitespaces=False, normalization_rule_name="identity", allow_whitespace_only_pieces=True,
            user_defined_symbols=reserved_pieces(), character_coverage=0.9995, max_sentence_length=4096,
            required_chars="".join(map(chr, range(33, 127))),
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
            unk_piece="<unk>", num_threads=2, minloglevel=1,
        )  # fmt: skip
        model = sentencepiece_model_pb2.ModelProto.FromString(Path(folder, "nano.model").read_bytes())
    # The path of a temporary folder and its options are no part of the product.
    model.trainer_spec.model_prefix = "nano"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.SerializeToString())
