"""`cg-local info`: what a model is, how large it is, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.config import ModelConfig


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Embedded name, model folder, or published weights.")
    ] = "nano",
    context: Annotated[
        Optional[int], typer.Option("--context", min=1, help="Tokens of context; default: the model's.")  # noqa: UP045
    ] = None,
    kv_dtype: options.OptionalKvDtype = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the digests.")] = False,
    json: options.Json = False,
) -> None:
    """Show a model's size and whether it fits in memory.

    For published weights it shows what each scheme of `cg-local quantize` would make of them.

    \b
    Examples:
      cg-local info
      cg-local info ~/models/codegemma-2b-q4 --context 4096
      cg-local info ~/Downloads/codegemma-7b
      cg-local info ~/Downloads/codegemma-2b-f16.gguf
    """
    from cg_local.model_store import find_model, is_model_folder

    found = find_model(model)
    document: dict[str, Any] = {"name": found.name, "path": str(found.path)}
    if is_model_folder(found.path):
        document |= _model_folder(found.path, context, kv_dtype, verify)
    elif verify:
        raise typer.BadParameter("published weights carry no digests; quantize them first", param_hint="--verify")
    else:
        document |= _checkpoint(found.path, context, kv_dtype)
    if json:
        print_json(document)
    else:
        write_stdout(_text(document))


def _model_folder(path: Path, context: int | None, kv_dtype: options.KvDtype | None, verify: bool) -> dict[str, Any]:
    from cg_local.model_folder import open_model_folder

    folder = open_model_folder(path, verify=verify)
    _tell_limit(path, context, folder.config)
    weight_bytes = sum(matrix.num_bytes for matrix in folder.matrices.values())
    weight_bytes += sum(gain.nbytes for gain in folder.gains.values())
    bits = folder.metadata.get("bits_per_weight")
    bits = bits if isinstance(bits, (int, float)) else 8 * weight_bytes / folder.config.num_parameters
    return {
        "kind": "model folder",
        "architecture": _architecture(folder.config),
        "licence": _licence(path),
        "quality": _quality(folder.metadata.get("quality")),
        "verified": verify,
        "schemes": [_scheme(folder.scheme, weight_bytes, bits, folder.config, context, kv_dtype)],
    }


def _checkpoint(path: Path, context: int | None, kv_dtype: options.KvDtype | None) -> dict[str, Any]:
    from cg_local.checkpoint import open_checkpoint
    from cg_local.quant.schemes import plan_checkpoint

    checkpoint = open_checkpoint(path)
    for text in checkpoint.notices:
        notice(text)
    plans = [plan_checkpoint(checkpoint, scheme.value) for scheme in options.Scheme]
    config = checkpoint.config
    _tell_limit(path, context, config)
    schemes = [_scheme(plan.scheme, plan.num_bytes, plan.bits_per_weight, config, context, kv_dtype) for plan in plans]
    return {
        "kind": "published weights",
        "architecture": _architecture(config),
        "licence": _licence(path),
        "schemes": schemes,
    }


def _tell_limit(path: Path, context: int | None, config: ModelConfig) -> None:
    limit = config.max_position_embeddings
    if context is not None and context > limit:
        notice(f"{path} was trained for {limit:,} tokens: the figures are for those, not for {context:,}")


def _architecture(config: ModelConfig) -> dict[str, int]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    figures = {name: getattr(config, name) for name in (*names, "max_position_embeddings")}
    return {**figures, "parameters": config.num_parameters}


def _scheme(
    scheme: str,
    weight_bytes: int,
    bits: float,
    config: ModelConfig,
    context: int | None,
    kv_dtype: options.KvDtype | None,
) -> dict[str, Any]:
    from cg_local.config import EngineConfig
    from cg_local.memory import available_bytes, memory_need
    from cg_local.speculation import MAX_DRAFT_TOKENS

    tokens = min(context or config.max_position_embeddings, config.max_position_embeddings)
    engine = EngineConfig(
        max_context=tokens, kv_dtype=kv_dtype.value if kv_dtype else None, max_draft_tokens=MAX_DRAFT_TOKENS
    )
    need, free = memory_need(weight_bytes, scheme, config, engine), available_bytes()
    return {
        "scheme": scheme,
        "bits_per_weight": round(bits, 3),
        "context": tokens,
        "kv_dtype": engine.kv_dtype_for(scheme),
        "weight_bytes": need.weights,
        "kv_cache_bytes": need.kv_cache,
        "scratch_bytes": need.scratch,
        "total_bytes": need.total,
        "free_bytes": free,
        "fits": None if free is None else need.total <= free,
    }


def _licence(path: Path) -> str | None:
    """First line of the terms that lie beside the weights."""
    for name in ("NOTICE", "LICENSE"):
        if (path / name).is_file():
            lines = (path / name).read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in lines if line.strip()), None)
    return None


def _quality(report: object) -> dict[str, Any] | None:
    """Mean and worst signal-to-noise ratio over the matrices; None where the quantizer left no figures."""
    if not isinstance(report, Mapping):
        return None
    ratios = {
        name: figures["sqnr_db"]
        for name, figures in report.items()
        if isinstance(figures, Mapping) and isinstance(figures.get("sqnr_db"), (int, float))
    }
    if not ratios:
        return {"exact": True} if report else None
    worst = min(ratios, key=lambda name: float(ratios[name]))
    return {
        "mean_sqnr_db": round(sum(ratios.values()) / len(ratios), 2),
        "lowest_sqnr_db": round(ratios[worst], 2),
        "lowest_sqnr_tensor": worst,
    }


def _text(document: Mapping[str, Any]) -> str:
    shape = document["architecture"]
    lines = [
        ("model", document["name"]),
        ("path", f"{document['path']} ({document['kind']})"),
        (
            "network",
            f"{shape['num_layers']} layers, hidden {shape['hidden_size']:,}, intermediate "
            f"{shape['intermediate_size']:,}, {shape['num_heads']} heads of {shape['head_dim']}, "
            f"{shape['num_kv_heads']} for K/V, vocabulary {shape['vocab_size']:,}",
        ),
        ("parameters", f"{shape['parameters']:,}"),
        ("licence", document["licence"] or "no NOTICE or LICENSE beside the weights"),
    ]
    quality = document.get("quality")
    if quality is not None:
        lines.append(("quality", _quality_text(quality)))
    if document.get("verified"):
        lines.append(("verified", "every digest matches"))
    text = "".join(f"{label:<12}{value}\n" for label, value in lines)
    return text + "".join(_scheme_text(scheme) for scheme in document["schemes"])


def _quality_text(quality: Mapping[str, Any]) -> str:
    if quality.get("exact"):
        return "exact copy of the weights"
    return (
        f"signal to noise {quality['mean_sqnr_db']} dB in the mean, {quality['lowest_sqnr_db']} dB at the lowest "
        f"({quality['lowest_sqnr_tensor']})"
    )


def _scheme_text(scheme: Mapping[str, Any]) -> str:
    from cg_local.memory import readable_size

    free = scheme["free_bytes"]
    verdict = "free memory unknown"
    if free is not None:
        verdict = f"{'fits' if scheme['fits'] else 'does NOT fit'} in {readable_size(free)} of free memory"
    return (
        f"{scheme['scheme']:<12}{scheme['bits_per_weight']:.2f} bits a weight: weights "
        f"{readable_size(scheme['weight_bytes'])} + K/V {readable_size(scheme['kv_cache_bytes'])} "
        f"({scheme['kv_dtype']}) for {scheme['context']:,} tokens + scratch {readable_size(scheme['scratch_bytes'])} = "
        f"{readable_size(scheme['total_bytes'])}; {verdict}\n"
    )
