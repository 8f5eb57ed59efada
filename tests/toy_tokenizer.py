"""Builds small SentencePiece models whose first 217 ids, and byte pieces behind them, are laid out as CodeGemma's.

Owns the test double of tokenizer.model and its deliberate misbuilds; checks nothing itself.
Invariant: the same arguments give the same bytes, and a model takes well under a second to build.

Ids: 0 <pad>, 1 <eos>, 2 <bos>, 3 <unk>, 4 <mask>, 5 <2mass>, 6 [@BOS@], 7..105 <unused0>..<unused98> with the FIM
pieces at 67..70, 106 and 107 the turn marks, 108..138 runs of 1..31 newlines, 139..168 runs of 2..31 spaces,
169..216 HTML tags, 217..472 bytes, then what BPE learned, then (if `vocab_size` asks for more) filler pieces that no
text reaches.
"""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

DEFAULT_VOCAB_SIZE = 768
MIN_VOCAB_SIZE = 600
FIM_NAMES = {67: "<|fim_prefix|>", 68: "<|fim_middle|>", 69: "<|fim_suffix|>", 70: "<|file_separator|>"}
WORDS = [
    *("def", "return", "import", "class", "self", "for", "in", "if", "else", "print", "range", "str", "value", "None"),
    *("open", "read", "write", "path", "yield", "while", "lambda", "except", "finally", "argument", "function"),
]


def html_tags() -> list[str]:
    """The 48 tags of ids 169..216."""
    table = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"]
    heading = ["h1", "h2", "h3", "h4", "h5", "h6", "blockquote"]
    inline = ["strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
    return [f"<{slash}{tag}>" for group in (table, heading, inline) for slash in ("", "/") for tag in group]


def training_text() -> str:
    """A seeded text of indented keyword lines with every printable ASCII character."""
    rng = random.Random(0)
    lines = [
        "    " * rng.randint(0, 3) + " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 9))) for _ in range(3000)
    ]
    return "\n".join([*lines, " ".join(chr(code) for code in range(33, 127))])


def train(vocab_size: int, trainer_options: tuple[tuple[str, object], ...]) -> bytes:
    """Train on `training_text`; `trainer_options` override those of CodeGemma's tokenizer."""
    names = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{number}>" for number in range(99))]
    names += ["<start_of_turn>", "<end_of_turn>"]
    names += ["\n" * length for length in range(1, 32)] + ["\u2581" * length for length in range(2, 32)] + html_tags()
    options: dict[str, object] = {
        "model_type": "bpe", "byte_fallback": True, "split_digits": True, "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "character_coverage": 1.0,
        "allow_whitespace_only_pieces": True, "user_defined_symbols": names, "num_threads": 1, "minloglevel": 2,
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>",
    } | dict(trainer_options)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text(training_text(), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/toy", vocab_size=vocab_size, **options
        )
        return Path(folder, "toy.model").read_bytes()


@functools.cache
def toy_tokenizer_bytes(
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    *,
    base_gemma: bool = False,
    renamed: tuple[tuple[int, str], ...] = (),
    trainer_options: tuple[tuple[str, object], ...] = (),
) -> bytes:
    """Return the serialized model; arguments as in `write_toy_tokenizer`."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"the toy tokenizer needs at least {MIN_VOCAB_SIZE} pieces, not {vocab_size}")
    model = sentencepiece_model_pb2.ModelProto.FromString(train(min(vocab_size, DEFAULT_VOCAB_SIZE), trainer_options))
    for token_id, name in (dict(renamed) if base_gemma else {**FIM_NAMES, **dict(renamed)}).items():
        model.pieces[token_id].piece = name
    lowest = model.pieces[-1].score
    for number in range(len(model.pieces), vocab_size):
        model.pieces.add(piece=f"filler{number}", score=lowest - 1 - number)
    # The temporary folder's name would make two builds differ.
    model.trainer_spec.input[:] = []
    model.trainer_spec.model_prefix = "toy"
    return bytes(model.SerializeToString())


def write_toy_tokenizer(
    path: Path,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    *,
    base_gemma: bool = False,
    renamed: tuple[tuple[int, str], ...] = (),
    trainer_options: tuple[tuple[str, object], ...] = (),
) -> Path:
    """Write a toy tokenizer.model and return its path.

    Args:
        path: the file to write, usually `.../tokenizer.model`.
        vocab_size: number of pieces, at least MIN_VOCAB_SIZE; those beyond what the toy text teaches are fillers.
        base_gemma: leave ids 67..70 named <unused60>..<unused63>, as in base Gemma's file.
        renamed: (id, new name) pairs, for wrong layouts.
        trainer_options: (name, value) pairs of SentencePiece's trainer, for wrong specs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        toy_tokenizer_bytes(vocab_size, base_gemma=base_gemma, renamed=renamed, trainer_options=trainer_options)
    )
    return path
