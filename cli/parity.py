"""`cg-local parity`: JAX beside another path, on the same tokens and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import batch, options
from cg_local.cli.render import Status, notice, print_json, write_stdout
from cg_local.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from cg_local.jax_backend.backend import OpenedModel
    from cg_local.jax_backend.model import CompiledModel
    from cg_local.jax_backend.parity import Difference, OtherSide, Tolerance
    from cg_local.jax_backend.program_report import ProgramReport

FIRST_RANDOM_ID = 512  # behind control ids, white space and bytes in CodeGemma's layout
REPORT_TOKENS = 64  # of an answer whose programs are reported on


class Other(str, Enum):
    """What JAX is compared with."""

    reference = "reference"
    engine = "engine"
    transformers = "transformers"


def parity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Embedded name, model folder, or folder of published weights.")
    ] = "nano",
    against: Annotated[Other, typer.Option("--against", help="What to compare with.")] = Other.reference,
    scheme: options.OptionalScheme = None,
    dtype: Annotated[batch.Dtype, typer.Option("--dtype", help="What JAX computes in.")] = batch.Dtype.float32,
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="FILE|N", help="The tokens of a text, or N random ones.")
    ] = "128",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random tokens.")] = 0,
    mesh: batch.Mesh = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Also compare after each layer.")] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Also tell each device's memory and what crosses between devices.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare the model in JAX with another path; exit with 1 where they differ by more than the stated tolerance.

    JAX takes the devices that it finds. Beside the engine both read the same quantized weights (published weights are
    quantized for it, as bf16 unless --scheme says otherwise), so what is compared is the arithmetic.

    \b
    Examples:
      cg-local parity nano
      cg-local parity nano --against engine --scheme q4
      cg-local parity ~/Downloads/codegemma-2b --against transformers --dtype bfloat16 --tokens 64
    """
    batch.require_jax()
    status = Status()
    with _opened(model, against, scheme, status) as opened:
        token_ids = _token_ids(opened, tokens, seed)
        with status.waiting(f"loading {model} ...", batch.COMPILING):
            compiled = _compiled(opened, mesh, dtype)
        other, limit = _other_side(opened, against, token_ids, dtype)
        document = _document(opened, compiled, against, dtype, len(token_ids), limit)
        if not json:
            write_stdout(_head(document))
        differences = _compare(opened, compiled, token_ids, other, layers, status, is_shown=not json)
        programs = _programs(compiled, len(token_ids)) if report else []
    faults = _faults(differences, limit)
    if json:
        figures = {"differences": [each.document() for each in differences], "within_tolerance": not faults}
        print_json({**document, **figures, **({"programs": programs} if report else {})})
    elif report:
        write_stdout(_programs_text(programs))
    if faults:
        notice(
            f"error: parity is missed at {', '.join(faults)}: largest difference over {limit.share:.2%} of the range"
        )
        raise typer.Exit(1)


@contextmanager
def _opened(model: str, against: Other, scheme: options.Scheme | None, status: Status) -> Iterator[OpenedModel]:
    """Open the weights that both sides read; what has to be quantized for the engine goes into a temporary folder."""
    import tempfile

    from cg_local.jax_backend.backend import PUBLISHED, open_model
    from cg_local.model_store import find_model, is_model_folder

    found, wanted = find_model(model), scheme.value if scheme else None
    is_checkpoint = not found.is_embedded and not is_model_folder(found.path)
    if against == Other.engine and (found.is_embedded or is_checkpoint):
        wanted = wanted or "bf16"
    with status.waiting(f"opening {model} ...", batch.COMPILING):
        opened = open_model(model, None if is_checkpoint else wanted, status.progress(model))
    if against == Other.transformers and (wanted or opened.scheme != PUBLISHED):
        raise ConfigError(f"{model}: {wanted or opened.scheme} weights; transformers reads published weights only")
    if not (is_checkpoint and wanted):
        yield opened
        return
    from cg_local.quant import quantize

    with tempfile.TemporaryDirectory(prefix="cg-local-parity-") as folder:
        quantize(opened.path, Path(folder) / "model", wanted, is_resumable=False, on_progress=status.progress(model))
        status.clear()
        yield replace(open_model(Path(folder) / "model"), name=opened.name)


def _token_ids(opened: OpenedModel, tokens: str, seed: int) -> list[int]:
    """Return <bos> and the tokens of a text, or random ones."""
    config = opened.config
    if not tokens.isdigit():
        from cg_local.cli.session import read_text

        found = [config.bos_token_id, *opened.tokenizer().encode(read_text(tokens).text)]
    else:
        import numpy as np

        first = min(FIRST_RANDOM_ID, config.vocab_size // 2)
        random = np.random.default_rng(seed).integers(first, config.vocab_size, max(0, int(tokens) - 1))
        found = [config.bos_token_id, *random.tolist()]
    if not 2 <= len(found) <= config.max_position_embeddings:
        raise PromptError(f"--tokens {tokens}: {len(found):,} tokens; give 2 to {config.max_position_embeddings:,}")
    return found


def _compiled(opened: OpenedModel, mesh: Optional[str], dtype: batch.Dtype) -> CompiledModel:  # noqa: UP045
    from cg_local.jax_backend.backend import compile_model
    from cg_local.jax_backend.mesh import MeshShape

    return compile_model(opened, mesh=MeshShape.parse(mesh or "1x1"), dtype=dtype.value)


def _other_side(
    opened: OpenedModel, against: Other, token_ids: list[int], dtype: batch.Dtype
) -> tuple[OtherSide, Tolerance]:
    from cg_local.jax_backend.parity import ReferenceSide, tolerance

    num_layers = opened.config.num_layers
    if against == Other.engine:
        from cg_local.jax_backend.other_sides import EngineSide
        from cg_local.model_folder import open_model_folder

        engine = EngineSide(open_model_folder(opened.path), token_ids)
        limit = tolerance(
            dtype.value,
            num_layers,
            rounds_activations=opened.scheme != "bf16",
            rounds_cache=engine.kv_dtype != "float32",
        )
        return engine, limit
    limit = tolerance(dtype.value, num_layers, rounds_activations=False, rounds_cache=False)
    if against == Other.reference:
        return ReferenceSide(opened.source, token_ids), limit
    from cg_local.jax_backend.other_sides import TransformersSide

    return TransformersSide(opened.path, token_ids), limit


def _compare(
    opened: OpenedModel,
    compiled: CompiledModel,
    token_ids: list[int],
    other: OtherSide,
    layers: bool,
    status: Status,
    *,
    is_shown: bool,
) -> list[Difference]:
    from cg_local.jax_backend.parity import JaxSide, compare

    differences: list[Difference] = []
    with status.waiting("computing with JAX ...", batch.COMPILING):
        jax_side = JaxSide(compiled, token_ids)
    for difference in compare(opened.source, jax_side, other, layers=layers):
        differences.append(difference)
        if is_shown:
            write_stdout(_row(difference))
    return differences


def _document(
    opened: OpenedModel,
    compiled: CompiledModel,
    against: Other,
    dtype: batch.Dtype,
    num_tokens: int,
    limit: Tolerance,
) -> dict[str, object]:
    from cg_local.jax_backend.mesh import describe_devices

    places = compiled.network.shardings
    return {
        **{"model": opened.name, "scheme": opened.scheme, "against": against.value, "dtype": dtype.value},
        **{"num_tokens": num_tokens, "devices": describe_devices(), "mesh": f"{places.data}x{places.tensor}"},
        **{"tolerance": limit.share, "tolerance_reason": limit.reason},
    }


def _faults(differences: list[Difference], limit: Tolerance) -> list[str]:
    from cg_local.jax_backend.parity import is_within

    return [difference.place for difference in differences if not is_within(difference, limit)]


def _head(document: Mapping[str, Any]) -> str:
    return (
        "{model} ({scheme}), JAX in {dtype} against {against}, {num_tokens} tokens; JAX found {devices}, mesh {mesh}\n"
        "tolerance: {tolerance:.3%} of the range ({tolerance_reason})\n\n".format(**document)
        + f"{'after':<10} {'largest':>9} {'mean':>9} {'of the range':>12} {'mean of it':>10} "
        f"{'KL mean':>9} {'KL max':>9} {'top-1':>8}\n"
    )


def _row(difference: Difference) -> str:
    d = difference
    return (
        f"{d.place:<10} {d.largest:9.2e} {d.mean:9.2e} {d.largest_share:12.2e} {d.mean_share:10.2e} "
        f"{d.kl_mean:9.2e} {d.kl_max:9.2e} {d.top1_agreement:8.3%}\n"
    )


def _programs(compiled: CompiledModel, num_tokens: int) -> list[dict[str, object]]:
    from cg_local.jax_backend.program_report import report_programs

    groups = compiled.network.shardings.data
    found = report_programs(compiled, batch=groups, prompt_tokens=num_tokens, max_tokens=REPORT_TOKENS)
    return [{"batch": groups, **_program(each)} for each in found]


def _program(report: ProgramReport) -> dict[str, object]:
    return {
        **{"program": report.name, "device_bytes": report.device_bytes, "argument_bytes": report.argument_bytes},
        **{"output_bytes": report.output_bytes, "aliased_bytes": report.aliased_bytes},
        "temporary_bytes": report.temporary_bytes,
        "collectives": [
            {"kind": each.kind, "count": each.count, "bytes": each.num_bytes} for each in report.collectives
        ],
        "is_exact": report.is_exact,
    }


def _programs_text(programs: list[dict[str, object]]) -> str:
    from cg_local.memory import readable_size

    lines = []
    for each in programs:
        sizes = ", ".join(
            f"{label} {readable_size(int(str(each[key])))}"
            for label, key in (("arguments", "argument_bytes"), ("temporary", "temporary_bytes"))
        )
        total = readable_size(int(str(each["device_bytes"])))
        lines.append(f"\n{each['program']}, batch {each['batch']}: {total} a device ({sizes})\n")
        collectives = each["collectives"]
        assert isinstance(collectives, list)
        for found in collectives:
            lines.append(f"  {found['kind']:<18} {found['count']:>5} x, {readable_size(found['bytes'])} in all\n")
        if not collectives:
            lines.append("  nothing crosses between devices\n")
    return "".join(lines)
