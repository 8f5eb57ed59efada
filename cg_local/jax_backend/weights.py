"""Weights from a checkpoint or a model folder onto devices.

This file owns the structure of the weights in JAX and their way there. It reads no file itself. Invariant: beside what
is already on the devices, the host holds one matrix of one layer (or the embedding, which goes first) at a time, in the
type it is computed in; a larger model needs no more than its own size and that.

The layers' weights are stacked, [num_layers, ...] each, because `model` walks them with `lax.scan`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cg_local.config import ModelConfig
from cg_local.errors import BackendError
from cg_local.jax_backend.layers import LAYER_NAMES
from cg_local.jax_backend.mesh import TENSOR, Shardings
from cg_local.model_folder import EMBEDDING, HEAD

FINAL_NORM = "model.norm.weight"
DTYPES: Mapping[str, jnp.dtype] = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
# What is dequantized at a time, as float32.
SLAB_BYTES = 64 << 20

# Our names of a layer's weights -> the published ones.
PUBLISHED: Mapping[str, str] = {
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


class WeightSource(Protocol):
    """What weights are read from: a `checkpoint.Checkpoint` or a `dequantized_folder.DequantizedFolder`."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape and constants."""

    @property
    def tensor_names(self) -> Sequence[str]:
        """Published names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; a matrix is [outputs, inputs]."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A whole tensor; a norm is an offset from 1."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Some rows of a matrix."""


class Weights(NamedTuple):
    """A model on devices.

    Attributes:
        embedding: [vocab_size, hidden_size].
        layers: by LAYER_NAMES; norms float32 [num_layers, hidden_size], matrices [num_layers, inputs, outputs].
        final_norm: float32 [hidden_size].
        head: like the embedding, where the output head is another matrix; else None.
    """

    embedding: jax.Array
    layers: dict[str, jax.Array]
    final_norm: jax.Array
    head: jax.Array | None


def load_weights(source: WeightSource, shardings: Shardings, dtype: str = "float32") -> Weights:
    """Put a model on its devices.

    Args:
        source: opened weights.
        shardings: where they go.
        dtype: of the matrices, of DTYPES; rounded to nearest even. Norms stay float32.

    Raises:
        BackendError: an unknown dtype.
        CheckpointError: the file changed meanwhile, or holds NaN or infinity.
    """
    check_dtype(dtype)
    # The largest tensors first, while there is most room.
    embedding = _table(source, EMBEDDING, shardings, dtype)
    head = _table(source, HEAD, shardings, dtype) if HEAD in source.tensor_names else None
    return Weights(
        embedding=embedding,
        layers={name: _stack(source, name, shardings, dtype) for name in LAYER_NAMES},
        final_norm=_on_devices(source.tensor(FINAL_NORM), shardings.replicated),
        head=head,
    )


def check_dtype(dtype: str) -> None:
    """Refuse an unknown type.

    Raises:
        BackendError: it is not in DTYPES.
    """
    if dtype not in DTYPES:
        raise BackendError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")


def device_weight_bytes(config: ModelConfig, shardings: Shardings, dtype: str) -> int:
    """Return the bytes of a model's weights on one device of a mesh; a separate head is not counted."""
    total = 0
    for name, shape in config.tensor_shapes().items():
        ours = next((key for key, published in PUBLISHED.items() if published in name), None)
        if len(shape) == 1:
            total += 4 * shape[0]
            continue
        axes = (shardings.embedding if ours is None else shardings.layer(ours)).spec
        total += math.prod(shape) * DTYPES[dtype].itemsize // (shardings.tensor if TENSOR in axes else 1)
    return total


def _table(source: WeightSource, name: str, shardings: Shardings, dtype: str) -> jax.Array:
    table = np.empty(source.shape(name), DTYPES[dtype])
    for start, stop in _slabs(table.shape):
        table[start:stop] = source.rows(name, start, stop)
    return _on_devices(table, shardings.embedding)


def _stack(source: WeightSource, name: str, shardings: Shardings, dtype: str) -> jax.Array:
    """Write layer after layer into a stack that lies on the devices from the start."""
    num_layers = source.config.num_layers
    # The stack is donated: written in place, not copied once a layer.
    put = jax.jit(_put, donate_argnums=0)
    first = _layer(source, name, 0, dtype)
    zeros = jax.jit(
        functools.partial(jnp.zeros, (num_layers, *first.shape), first.dtype), out_shardings=shardings.stack(name)
    )
    stack = zeros()
    for layer in range(num_layers):
        matrix = first if layer == 0 else _layer(source, name, layer, dtype)
        stack = put(stack, _on_devices(matrix, shardings.layer(name)), layer)
    return stack


def _put(stack: jax.Array, matrix: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, matrix, layer, 0)


def _layer(source: WeightSource, name: str, layer: int, dtype: str) -> NDArray[np.generic]:
    """Read one weight of one layer; a matrix is turned to [inputs, outputs] slab by slab."""
    published = f"model.layers.{layer}.{PUBLISHED[name]}.weight"
    shape = source.shape(published)
    if len(shape) == 1:
        return source.tensor(published)
    matrix = np.empty(shape[::-1], DTYPES[dtype])
    for start, stop in _slabs(shape):
        matrix[:, start:stop] = source.rows(published, start, stop).T
    return matrix


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(16, SLAB_BYTES // (4 * math.prod(shape[1:])) // 16 * 16)  # whole tiles of a packed matrix
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _on_devices(array: NDArray[np.generic], sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Give each device of this process its part; other processes do the same with theirs."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
