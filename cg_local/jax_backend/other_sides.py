"""The engine and transformers as the other side of a comparison.

This file owns how their residual streams are reached without a change to them. It compares nothing. Invariant: neither
computes anything else than it does on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cg_local.config import EngineConfig
from cg_local.engine import Engine
from cg_local.errors import BackendError
from cg_local.jax_backend.weights import FINAL_NORM
from cg_local.kv_cache import KVCache
from cg_local.model import Model, SequenceSpan
from cg_local.model_folder import HEAD, ModelFolder
from cg_local.packing import PackedMatrix, bfloat16_from_float32, pack_codes

Floats = NDArray[np.float32]
PAGE_SIZE = 16


class EngineSide:
    """The engine on a model folder.

    Its hot path has no tap. After n layers it is asked as a model of n layers whose final norm has no gain and whose
    head is the identity in bf16, which is exact: its logits are the residual stream's rows at unit root mean square.
    So the layers of an L-layer model take the time of L / 2 whole passes.

    Args:
        folder: opened.
        token_ids: the sequence.
        kv_dtype: how K and V are kept; None: as the engine does by itself.
    """

    def __init__(self, folder: ModelFolder, token_ids: Sequence[int], kv_dtype: str | None = None) -> None:
        self._folder, self._token_ids = folder, token_ids
        self.kv_dtype = EngineConfig(kv_dtype=kv_dtype).kv_dtype_for(folder.scheme)

    def states(self) -> Iterator[Floats]:
        """Yield the rows at unit root mean square, after the embedding and after each layer."""
        for num_layers in range(self._folder.config.num_layers + 1):
            yield self._state_after(num_layers)

    def logits(self) -> Floats:
        """Return the engine's own logits."""
        config = EngineConfig(max_context=len(self._token_ids), kv_dtype=self.kv_dtype)
        return Engine(Model(self._folder), config).logits(self._token_ids)

    def _state_after(self, num_layers: int) -> Floats:
        hidden_size, num_tokens = self._folder.config.hidden_size, len(self._token_ids)
        identity = bfloat16_from_float32(np.eye(hidden_size, dtype=np.float32))
        head = PackedMatrix("bf16", (hidden_size, hidden_size), {"codes": pack_codes("bf16", identity)})
        folder = replace(
            self._folder,
            config=replace(self._folder.config, num_layers=num_layers),
            matrices=MappingProxyType({**self._folder.matrices, HEAD: head}),
            gains=MappingProxyType({**self._folder.gains, FINAL_NORM: np.ones(hidden_size, np.float32)}),
        )
        num_pages = math.ceil(num_tokens / PAGE_SIZE)
        # A cache of no layers has no room for the kernels' types; one is never looked at.
        shape = replace(folder.config, num_layers=max(1, num_layers))
        cache = KVCache(shape, num_pages=num_pages, page_size=PAGE_SIZE, dtype=self.kv_dtype)
        span = SequenceSpan(0, num_tokens, 0, np.arange(num_pages, dtype=np.int32))
        states = Model(folder).forward(np.array(self._token_ids, np.int32), [span], cache, np.arange(num_tokens))
        kept: Floats = states.copy()
        return kept


class TransformersSide:
    """Hugging Face transformers on published weights, in float32.

    Args:
        path: of the checkpoint.
        token_ids: the sequence.

    Raises:
        BackendError: torch or transformers is missing.
    """

    def __init__(self, path: Path, token_ids: Sequence[int]) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise BackendError(
                f"{error.name} is not installed; run `pip install 'cg-local[parity]'`, or compare with the reference"
            ) from error
        model: Any = transformers.GemmaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        self._states: list[Floats] = []

        def keep(found: Any) -> None:
            tensor = found[0] if isinstance(found, tuple) else found
            self._states.append(tensor.detach().numpy()[0].copy())

        layers = model.model.layers
        layers[0].register_forward_pre_hook(lambda _, inputs, options: keep(_hidden(inputs, options)), with_kwargs=True)
        for layer in layers:
            layer.register_forward_hook(lambda _, __, found: keep(found))
        with torch.no_grad():
            self._logits: Floats = model(torch.tensor([list(token_ids)])).logits.numpy()[0]

    def states(self) -> Iterator[Floats]:
        """Yield the residual stream, after the embedding and after each layer."""
        yield from self._states

    def logits(self) -> Floats:
        """Return transformers' logits."""
        return self._logits


def _hidden(inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return the residual stream from a layer's arguments, wherever the version puts it."""
    return inputs[0] if inputs else options["hidden_states"]
