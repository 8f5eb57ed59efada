"""From options to a plan of formats and the encoder of a method.

This file owns what follows from the options that a person leaves out. Invariant: plan and encoder follow from the
source and the options alone; a plan by a scheme loads no Numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cg_local.checkpoint import Checkpoint
from cg_local.errors import QuantizeError
from cg_local.quant.importance import FILE_NAME, ImportancePack
from cg_local.quant.options import METHODS, Options
from cg_local.quant.schemes import QuantizationPlan, plan_checkpoint
from cg_local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cg_local.quant.encoder import Encoder


def planned(checkpoint: Checkpoint, options: Options) -> QuantizationPlan:
    """Choose the formats.

    Raises:
        QuantizeError: unknown scheme or method, no pack where one is needed, one of another model, or fewer bits than
            any format has.
    """
    return _plan(checkpoint, options, *_find_pack(checkpoint, options))


def prepared(checkpoint: Checkpoint, options: Options) -> tuple[QuantizationPlan, Encoder]:
    """Choose the formats and make the encoder.

    Raises:
        QuantizeError: as by `planned`.
        CorpusError: the texts cannot be read, or are too few.
    """
    pack, notices = _find_pack(checkpoint, options)
    plan = _plan(checkpoint, options, pack, notices)
    return plan, _encoder(checkpoint, options, pack) if _rounds(plan) else _copying(checkpoint)


def required_tokenizer(checkpoint: Checkpoint) -> bytes:
    """Return the tokenizer that lies beside published weights.

    Raises:
        QuantizeError: there is none.
    """
    tokenizer = checkpoint.tokenizer_bytes()
    if tokenizer is None:
        raise QuantizeError(
            f"{checkpoint.path}: tokenizer.model is missing; download it from the model's page into this folder"
        )
    return tokenizer


def published_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Open the tokenizer that lies beside published weights.

    Raises:
        QuantizeError: there is none.
        TokenizerError: it is not laid out as CodeGemma's.
    """
    return Tokenizer.from_bytes(required_tokenizer(checkpoint), str(checkpoint.path))


def _plan(
    checkpoint: Checkpoint, options: Options, pack: ImportancePack | None, notices: Sequence[str]
) -> QuantizationPlan:
    if options.bits_per_weight is None:
        plan = plan_checkpoint(checkpoint, options.scheme)
    else:
        from cg_local.quant.budget import plan_budget

        plan = plan_budget(checkpoint, options.bits_per_weight, pack)
    return replace(plan, notices=(*plan.notices, *notices))


def _rounds(plan: QuantizationPlan) -> bool:
    return any(format != "bf16" for format in plan.formats.values())


def _copying(checkpoint: Checkpoint) -> Encoder:
    """Return what takes weights over as they are: by no method."""
    from cg_local.quant.encoder import SearchEncoder

    encoder = SearchEncoder(checkpoint)
    encoder.options = {}
    return encoder


def _encoder(checkpoint: Checkpoint, options: Options, pack: ImportancePack | None) -> Encoder:
    from cg_local.quant.encoder import ImportanceEncoder, SearchEncoder

    if options.method == "gptq":
        from cg_local.quant.corpora import calibration_corpus
        from cg_local.quant.gptq import GptqEncoder

        corpus = calibration_corpus(
            published_tokenizer(checkpoint),
            options.corpus,
            num_tokens=options.calibration_tokens,
            window_tokens=options.window_tokens,
        )
        return GptqEncoder(checkpoint, corpus)
    return SearchEncoder(checkpoint) if pack is None else ImportanceEncoder(checkpoint, pack)


def _find_pack(checkpoint: Checkpoint, options: Options) -> tuple[ImportancePack | None, Sequence[str]]:
    """Return the pack that the method takes, None where it takes none, and what a user should be told about it.

    Raises:
        QuantizeError: unknown method, or a pack that is needed is missing, damaged or of other weights.
    """
    if options.method not in (None, *METHODS):
        raise QuantizeError(f"unknown method {options.method!r}; known are {', '.join(METHODS)}")
    if options.method == "fast":
        if options.importance is not None:
            raise QuantizeError("the method fast rounds without an importance pack; leave one of the two out")
        return None, ()
    if options.scheme == "bf16" and options.bits_per_weight is None:
        return None, ()  # it rounds by nothing
    if options.method == "gptq" and options.bits_per_weight is None:
        return None, ()  # its rounding follows the texts, its formats the scheme
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = options.importance or folder / FILE_NAME
    is_wanted = options.importance is not None or options.method == "imp"
    if not is_wanted and not path.exists():
        return None, ()
    if options.importance is None and not path.exists():
        raise QuantizeError(
            f"{path}: no such file; make it with `cg-local calibrate`, name one with --importance, or pass "
            "--method fast"
        )
    pack = ImportancePack.load(path)
    misfit = pack.misfit(checkpoint)
    if misfit is None:
        return pack, ()
    if is_wanted:
        raise QuantizeError(
            f"{path}: {misfit}; make one of {checkpoint.path} with `cg-local calibrate`, or pass --method fast"
        )
    # Nobody asked for it: it lies there, as in a folder that was copied for a fine-tune.
    return None, (f"{path}: left aside: {misfit}; `cg-local calibrate` makes one of these weights",)
