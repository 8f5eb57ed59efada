"""Loading a model for a command, with its notices and its progress shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cg_local.cli.options import Scheme
from cg_local.cli.render import Status, notice

if TYPE_CHECKING:
    from cg_local.runtime import LocalModel


def load_model(name: str, scheme: Scheme | None, max_context: int, num_threads: int | None) -> LocalModel:
    """Load a model as `cg_local.load` does.

    Args:
        name: embedded name, name in the data folder, or model folder.
        scheme: how to quantize an embedded model.
        max_context: tokens of prompt and answer together.
        num_threads: threads of the kernels; None: one for each processor.
    """
    status = Status()
    with status.waiting(f"loading {name} ..."):
        from cg_local.runtime import load

        return load(
            name,
            scheme=scheme.value if scheme else None,
            max_context=max_context,
            num_threads=num_threads,
            on_notice=notice,
            on_progress=status.progress(name),
        )
